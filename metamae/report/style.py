"""The looks that all figures share: one colour for each method, wherever it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from zlib import crc32

SERIES = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")
"""Colours of what has no name of its own: channels, data sets, settings."""

LOOKS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "metamae": ("#c2185b", "*", "-"),
        "mae": ("#d95f02", "P", "-"),
        "umae": ("#00796b", "X", "-"),
        "mae_contrast": ("#7b4fa3", "p", "-"),
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
