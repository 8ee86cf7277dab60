"""Writes docs/configuration.md from the dataclasses of a configuration.

    python docs/site/configuration.py

Names, types and defaults are the dataclasses' own, meanings those of their docstrings' `Attributes:`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this tree, whatever is installed

from metamae.config import LEARNABLE, METHODS, PRESETS, Config, list_presets

PAGE = Path(__file__).resolve().parents[1] / "configuration.md"

HEAD = """# Configuration

<!-- Written by docs/site/configuration.py from the dataclasses in metamae/config; do not edit. -->

A run is determined by its configuration and its data. Every setting below can be changed on the command line,
`--set adaptation.steps=5`, and in Python, `make_config("sensors", overrides=["adaptation.steps=5"])`. Its value comes
from the first of these that names it: `--set`; the preset; the default below, which is the paper's where the paper
names one. An unknown name or a value out of range is an error that names the nearest. The values a run was made with
are in `config.yaml` of its folder.

| preset | what it is | for |
|---|---|---|
"""

PRESET_MEANINGS = {
    "pocket": "small networks and budgets, for a laptop",
    "paper": "the paper's settings for each data set (its Table 8)",
    "shared": "the paper's, with three settings shared by all sets (its Table 9)",
}
"""What a kind of presets is for."""

NAMES = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
"""How a type is called."""


def make_page() -> str:
    """The page's text."""
    kinds = [
        f"| `{kind}` | {PRESET_MEANINGS[kind]} | {', '.join(list_presets(kind))} |"
        for kind in PRESETS
    ]
    auto = (
        "| `auto` | sizes by the data, steps by `--minutes` ([your data](your-data.md)) | a path |"
    )
    sections = [_section(cls, name) for name, cls in _sections(Config, "")]
    return HEAD + "\n".join([*kinds, auto]) + "\n\n" + "\n".join(sections)


def _sections(cls: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A dataclass and those within it, with the names of their sections."""
    yield name, cls
    for key, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from _sections(kind, f"{name}.{key}" if name else key)


def _section(cls: Any, name: str) -> str:
    """One heading, what the section is, and a row for every setting."""
    text, meanings = _read_docstring(cls)
    kinds = typing.get_type_hints(cls)
    rows = [
        f"| `{f'{name}.' if name else ''}{field.name}` | {_type(kinds[field.name])} "
        f"| {_default(field)} | {meanings[field.name]} |"
        for field in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(kinds[field.name])
    ]
    head = f"## {name or 'The run'}\n\n{text}\n"
    return (
        head
        + "\n| setting | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _read_docstring(cls: Any) -> tuple[str, dict[str, str]]:
    """Of a dataclass: what stands above `Attributes:`, and the meaning of each field."""
    text, found, attributes = (inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    if not found:
        raise SystemExit(f"expected a section `Attributes:` in the docstring of {cls.__name__}")
    entries = re.split(r"^    (?=\w+:)", attributes.partition("\n\n")[0], flags=re.MULTILINE)
    meanings = dict(entry.split(": ", 1) for entry in entries if entry)
    return _markdown(text, joined=False), {name: _markdown(m) for name, m in meanings.items()}


def _markdown(text: str, *, joined: bool = True) -> str:
    """Of reStructuredText, as far as these docstrings use it."""
    lists = {"LEARNABLE": LEARNABLE, "METHODS": METHODS}
    text = re.sub(r":data:`(\w+)`", lambda m: ", ".join(f"``{n}``" for n in lists[m[1]]), text)
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"`docs/([\w-]+)\.md`", r"[\1](\1.md)", text)
    return " ".join(text.split()) if joined else text


def _type(kind: Any) -> str:
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    if origin is tuple:
        return f"list: {NAMES[choices[0]]}"
    return NAMES[kind]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "must be given"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
