"""The looks that all figures share: one style sheet, and one colour for each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from zlib import crc32

SERIES = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")
"""Colours of what has no name of its own: channels, data sets, settings."""

SHEET: Mapping[str, Any] = MappingProxyType(
    {
        "font.size": 14,
        "figure.titlesize": 16,
        "figure.labelsize": 14,
        "axes.titlesize": 16,
        "axes.labelsize": 15,
        "xtick.labelsize": 13,
        "ytick.labelsize": 13,
        "legend.fontsize": 14,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.prop_cycle": f"cycler(color={list(SERIES)})",
        "lines.linewidth": 2,
        "lines.markersize": 7,
        "errorbar.capsize": 3,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 110,
    }
)
"""Settings of matplotlib for every figure: letters can be read at half the size."""

LOOKS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "metamae": ("#c2185b", "*", "-"),
        "mae": ("#d95f02", "P", "-"),
        "umae": ("#00796b", "X", "-"),
        "mae_contrast": ("#7b4fa3", "p", "-"),
        "gon": ("#3949ab", "8", "-"),
        "lfr": ("#9e9d24", "H", "-"),
        "mae_linear": ("#f2a65a", "d", "-"),
        "capri": ("#2e7d32", "<", "-"),
        "shed": ("#8d6e00", ">", "-"),
        "emix": ("#5c9ccc", "h", "-"),
        "random": ("#888888", "o", ":"),
        "supervised": ("#222222", "s", "--"),
        "scratch": ("#444444", "x", ":"),
        "raw_logistic": ("#1f77b4", "o", "-"),
        "raw_boosting": ("#7570b3", "s", "-"),
        "raw_neighbours": ("#66a61e", "^", "-"),
        "components": ("#17a2b8", "v", "-"),
        "field": ("#a6761d", "D", "-"),
    }
)
"""Colour, marker and line of every method: told apart in print and without colours too."""

VERDICTS = MappingProxyType({"win": "#1f6fb4", "tie": "#8a8a8a", "loss": "#c46a1f"})
"""Colours of a paired difference."""


def look_of(name: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method; of one that others registered, by its name alone.

    Example:
        >>> from metamae.report.style import look_of
        >>> look_of("metamae")[0]
        '#c2185b'
        >>> look_of("mine") == look_of("mine")
        True
    """
    return LOOKS.get(name) or (SERIES[crc32(name.encode()) % len(SERIES)], ".", "-.")


@contextmanager
def styled(changes: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Draw by the :data:`SHEET`; afterwards matplotlib's settings are the caller's again.

    It decorates a drawing function, or is entered by ``with``. A figure takes most settings when
    it is made and some when it is saved: both belong inside. Loads matplotlib when it is entered.

    Args:
        changes: What this figure has otherwise, by matplotlib's names.

    Example:
        >>> import matplotlib
        >>> from metamae.report.style import styled
        >>> @styled({"axes.grid": False})
        ... def draw():
        ...     return matplotlib.rcParams["savefig.dpi"], matplotlib.rcParams["axes.grid"]
        >>> draw(), matplotlib.rcParams["savefig.dpi"]
        ((110.0, False), 'figure')
    """
    import matplotlib  # takes a second: commands start without it

    settings: dict[Any, Any] = {**SHEET, **changes}  # matplotlib's type lists every name
    with matplotlib.rc_context(settings):
        yield
