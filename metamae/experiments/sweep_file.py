"""Sweep files: YAML becomes a :class:`~metamae.experiments.plan.Sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metamae.arguments import as_path
from metamae.config.presets import list_presets
from metamae.config.schema import LARGEST_SEED, PRESETS
from metamae.data.own import is_path
from metamae.data.pocket import POCKET
from metamae.data.sources import SOURCES
from metamae.errors import ConfigError, reason_of, shown
from metamae.experiments.own_data import OWN_KEYS, OwnData
from metamae.experiments.plan import AUTO, MOST_CELLS, Source, Sweep, Variant, check_names
from metamae.files import parse_yaml, read_text


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Data sets, methods, seeds, protocols, variants and overrides are those of :class:`Sweep`;
    ``seeds`` may be a number, ``datasets`` a list of names. Own data have a name of their own, and
    a ``path`` that starts from the folder of the file.

    Raises:
        ConfigError: a missing file, no YAML, unknown keys or names, wrong types.
    """
    path = as_path(path, "a sweep file")
    try:
        values = parse_yaml(read_text(path))
    except OSError as fault:
        raise ConfigError(f"expected a sweep file at {path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"expected YAML in {path}: {reason_of(fault)}") from fault
    known = ("datasets", "methods", "seeds", "protocols", "variants", "overrides", "preset")
    values = _section(values, known, str(path))
    if "datasets" not in values:
        raise ConfigError(f"expected a key 'datasets' in {path}, got {', '.join(values) or 'none'}")
    settings: dict[str, Any] = {"datasets": _datasets(values["datasets"], path.parent)}
    for key in ("methods", "protocols", "overrides"):
        if key in values:
            settings[key] = _texts(values[key], key)
    if "variants" in values:
        settings["variants"] = _variants(values["variants"])
    if "seeds" in values:
        settings["seeds"] = _seeds(values["seeds"])
    if "preset" in values:
        check_names("preset", [values["preset"]], (*PRESETS, AUTO))
        settings["preset"] = values["preset"]
    return Sweep(**settings)


def _datasets(values: Any, folder: Path) -> dict[str, Source]:
    if isinstance(values, list):
        values = {str(name): None for name in values}
    names = [*POCKET, *list_presets("paper")]
    sources = {}
    for name, value in _section(values, None, "datasets").items():
        if isinstance(value, dict) and "path" in value:
            sources[str(name)] = _own(str(name), value, folder)
            continue
        if is_path(str(name)):
            raise ConfigError(
                f"expected own data in datasets under a name, as NAME: {{path: {name}, label: "
                f"COLUMN}}, got the path {str(name)!r}"
            )
        check_names("datasets", [name], names)
        inner = _section(value or {}, ("probe", "overrides"), f"datasets.{name}")
        settings = {key: _texts(inner[key], f"datasets.{name}.{key}") for key in inner}
        check_names(f"datasets.{name}.probe", settings.get("probe", ()), (*POCKET, *SOURCES))
        sources[name] = Source(
            probe=settings.get("probe", ()), overrides=settings.get("overrides", ())
        )
    return sources


def _own(name: str, values: Any, folder: Path) -> Source:
    inner = dict(_section(values, (*OWN_KEYS, "overrides"), f"datasets.{name}"))
    overrides = _texts(inner.pop("overrides", []), f"datasets.{name}.overrides")
    return Source(overrides=overrides, own=OwnData.read(name, inner, folder))


def _variants(values: Any) -> dict[str, Variant]:
    variants = {}
    for name, value in _section(values, None, "variants").items():
        known = ("overrides", "methods", "datasets", "ablation")
        inner = dict(_section(value or {}, known, f"variants.{name}"))
        ablation = str(inner.pop("ablation", ""))
        settings = {key: _texts(inner[key], f"variants.{name}.{key}") for key in inner}
        variants[str(name)] = Variant(ablation=ablation, **settings)
    return variants


def _seeds(value: Any) -> tuple[int, ...]:
    if type(value) is int and value > MOST_CELLS:
        raise ConfigError(f"expected up to {MOST_CELLS} seeds, got {shown(value)}")
    seeds = list(range(value)) if type(value) is int else value
    whole = isinstance(seeds, list) and all(
        type(s) is int and 0 <= s <= LARGEST_SEED for s in seeds
    )
    if not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"expected seeds as a number or a list of numbers >= 0, got {shown(value)}; "
            "each once, and below 2**64"
        )
    return tuple(seeds)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"expected a list of texts for {where}, got {shown(value)}")
    return tuple(items)


def _section(value: Any, known: tuple[str, ...] | None, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"expected keys and values in {where}, got {shown(value)}")
    check_names(where, value, known or value)
    return value
