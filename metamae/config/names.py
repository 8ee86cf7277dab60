"""Names of methods: those of the package, and those that others register."""

from __future__ import annotations

from importlib.metadata import entry_points

from metamae.arguments import check_text
from metamae.errors import ConfigError, suggest

METHODS = (
    *("random", "emix", "shed", "capri", "mae_linear", "lfr"),
    *("mae", "umae", "mae_contrast", "gon", "metamae", "supervised"),
)
"""Known methods, in the order of a report."""

_registered: list[str] = []


def known_methods() -> tuple[str, ...]:
    """:data:`METHODS`, and what others have registered, in that order."""
    return (*METHODS, *_registered)


def check_method(name: str, where: str = "") -> None:
    """Raise ``ConfigError`` unless a method is known; ``where`` it was named goes into the error.

    Packages that name a module under the entry point ``metamae.methods`` are asked for it, by
    importing that module, which calls :func:`metamae.methods.register_method`.
    """
    check_text(name, "a method")
    if name not in known_methods():
        load_methods()
    known = known_methods()
    if name not in known:
        place = f" in {where}" if where else ""
        raise ConfigError(
            f"expected a method among {', '.join(known)}{place}, {suggest(name, known)}"
        )


def load_methods() -> None:
    """Import what other packages name under the entry point ``metamae.methods``."""
    for entry in entry_points(group="metamae.methods"):
        entry.load()


def add_method(name: str) -> None:
    """Make a method's name known; :func:`metamae.methods.register_method` does the rest."""
    if name not in known_methods():
        _registered.append(name)
