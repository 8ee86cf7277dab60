"""Checks of arguments that everybody passes: paths, names, sizes."""

from __future__ import annotations

import os
from pathlib import Path

from metamae.errors import ConfigError


def as_path(value: object, what: str = "a path") -> Path:
    """A path from a path or a text.

    Raises:
        ConfigError: anything else.

    Example:
        >>> from metamae.arguments import as_path
        >>> as_path("runs/a").name
        'a'
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ConfigError(f"expected {what} as a text or a Path, got {_shown(value)}")
    return Path(value)


def check_text(value: object, what: str) -> None:
    """Raise ``ConfigError`` unless a name is a text."""
    if not isinstance(value, str):
        raise ConfigError(f"expected {what} as a text, got {_shown(value)}")


def check_folder_name(name: str, what: str) -> None:
    """Raise ``ConfigError`` unless a name can be that of a visible folder."""
    if not name or set(name) & set("/\\") or name.startswith("."):
        raise ConfigError(f"expected {what} fit for a folder, got {name!r}")


def is_whole(value: object) -> bool:
    """Whether it is a whole number that torch can count with.

    Example:
        >>> from metamae.arguments import is_whole
        >>> is_whole(3), is_whole(3.0), is_whole(True), is_whole(2**70)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
