"""From YAML values and ``key=value`` texts to dataclasses: every wrong one is named."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from metamae.arguments import check_text
from metamae.errors import ConfigError, reason_of, shown, suggest
from metamae.files import parse_yaml


def apply_override(values: dict[str, Any], override: str) -> None:
    """Write one ``section.key=value`` into nested values; the value is read as YAML."""
    check_text(override, "an override")
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected an override like training.steps=100, got {shown(override)}")
    try:
        value = parse_yaml(text)
    except ValueError as fault:
        raise ConfigError(
            f"expected a YAML value in override {shown(override)}: {reason_of(fault)}"
        ) from fault
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"expected a section before the last dot of {shown(key)}")
    values[last] = value


@cache
def _field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(cls: Any, values: Any, where: str) -> Any:
    """A dataclass of checked and converted values; ``where`` is its section, for errors."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"expected a section for {where or 'the configuration'}, got {shown(values)}"
        )
    known = _field_types(cls)
    for key in values:
        if key not in known:
            raise ConfigError(
                f"expected a known key {'in ' + where if where else 'at the top'} "
                f"({', '.join(known)}), {suggest(str(key), known)}"
            )
    prefix = where + "." if where else ""
    built = {key: _convert(known[key], value, prefix + key) for key, value in values.items()}
    try:
        return cls(**built)
    except TypeError as missing:
        raise ConfigError(f"expected all required keys: {missing}") from missing


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false, and `on` as true.
        word = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else None
        value = word if word in arguments else value
        if not isinstance(value, str) or value not in arguments:
            raise ConfigError(f"expected {where} among {', '.join(arguments)}, got {shown(value)}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(arguments[0], item, where) for item in items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as fault:
            raise ConfigError(f"expected {where} to be a finite number, got {value}") from fault
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as a string.
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ConfigError(
            f"expected {where} to be {name}, got {shown(value)} ({type(value).__name__})"
        )
    return value


def plain(value: Any) -> Any:
    """Nested values with lists in place of tuples, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
