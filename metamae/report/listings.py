"""Rows of a table as pictures: a line for every column, its name beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamae.inputs import InputSpec, Tabular, Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
MOST = 40
"""Columns that are listed; more are drawn side by side."""
VISIBLE, RIGHT, WRONG, HIDDEN, MASKED = "black", "#1b9e77", "#d62728", "#999999", "#e8e8e8"
LETTERS = 34
"""Letters of a word that fit a panel."""


def is_listed(spec: InputSpec) -> bool:
    """Whether an input is drawn as a list: named numbers, or symbols that are words.

    Example:
        >>> from metamae.inputs import Tabular, Tokens
        >>> from metamae.report.listings import is_listed
        >>> is_listed(Tabular(name="row", columns=2, column_names=("age", "height")))
        True
        >>> is_listed(Tokens(name="dna", length=64, vocabulary=4, alphabet=tuple("ACGT")))
        False
    """
    if isinstance(spec, Tabular):
        return bool(spec.column_names) and spec.columns <= MOST
    return isinstance(spec, Tokens) and has_words(spec) and spec.length <= MOST


def has_words(spec: Tokens) -> bool:
    """Whether symbols have names of several letters."""
    names = spec.alphabet or tuple(map(str, range(spec.vocabulary)))
    return max(len(name) for name in names if not name.startswith("<")) > 1


def height_of(spec: InputSpec) -> float:
    """Inches of a panel."""
    return 0.22 * max(spec.tokens, 3) + 0.25 if is_listed(spec) else 1.9


def list_values(
    axis: Axes, names: tuple[str, ...], truth: Array, shown: Array | None, hidden: Array
) -> None:
    """Numbers as dots, masked columns shaded; where they were predicted, a ring is the true value.

    Args:
        axis: Where to draw.
        names: Of the columns; beside the panel where there is a label to draw.
        truth: True values, NaN where a cell is missing.
        shown: Values to draw; ``None`` draws what is visible.
        hidden: Which columns are masked.
    """
    places = np.arange(len(truth))
    for place in places[hidden.astype(bool)]:
        axis.axhspan(place - 0.5, place + 0.5, color=MASKED, lw=0)
    visible = np.where(hidden, np.nan, truth)
    axis.plot(visible, places, "o", color="#1f77b4", ms=5)
    if shown is not None:
        axis.plot(np.where(hidden, truth, np.nan), places, "o", mfc="none", mec="black", ms=7)
        axis.plot(np.where(hidden, shown, np.nan), places, "o", color="#d95f02", ms=5)
    everything = np.concatenate([truth, truth if shown is None else shown])
    far = np.abs(everything[np.isfinite(everything)]).max(initial=1.0)
    axis.set_xlim(-1.15 * far, 1.15 * far)
    for place in places[np.isnan(truth) & ~hidden.astype(bool)]:
        axis.text(0, place, "missing", color=HIDDEN, ha="center", va="center", fontsize="small")
    axis.axvline(0, color=MASKED, lw=1, zorder=0)
    axis.set_ylim(len(truth) - 0.5, -0.5)
    axis.set_yticks(places, [_cut(name, 18) for name in names], fontsize="small")


def list_words(axis: Axes, spec: Tokens, truth: Array, shown: Array | None, hidden: Array) -> None:
    """Visible words black, right predictions green, wrong ones red, masked ones a dot."""
    names = spec.alphabet or tuple(map(str, range(spec.vocabulary)))
    for place, code in enumerate(truth):
        word, colour = names[code if shown is None else shown[place]], VISIBLE
        if hidden[place]:
            axis.axhspan(place - 0.5, place + 0.5, color=MASKED, lw=0)
            word = "·" if shown is None else word
            right = shown is not None and shown[place] == code
            colour = HIDDEN if shown is None else (RIGHT if right else WRONG)
        text = _cut(word.replace("=", ": ", 1), LETTERS)
        axis.text(0.03, place, text, color=colour, va="center", fontsize="small")
    axis.set_ylim(len(truth) - 0.5, -0.5)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
