"""Sequences of letters become symbols, cut or filled up to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError

LONGEST = 512
"""Letters of a sequence that are read; attention grows with their square."""
UNKNOWN, END = "(unknown)", "(end)"
"""Symbols besides the letters."""


def fit_sequence(column: str, texts: Sequence[str], training: Array) -> dict[str, Any]:
    """Letters of the training rows, and the length of all rows.

    Raises:
        DataError: sequences of one letter, or none.
    """
    length = min(max(map(len, texts), default=0), LONGEST)
    letters = sorted(set().union(*(texts[row][:length] for row in training)))
    if length < 2 or len(letters) < 2:
        raise DataError(f"expected sequences of two letters or more in {column!r}, got others")
    return {"column": column, "length": length, "alphabet": [UNKNOWN, END, *letters]}


def apply_sequence(entry: dict[str, Any], texts: Sequence[str]) -> Array:
    """Symbols, uint16 ``(N, length)``.

    Example:
        >>> from metamae.data.own.sequences import apply_sequence
        >>> entry = {"length": 3, "alphabet": ["(unknown)", "(end)", "A", "C"]}
        >>> apply_sequence(entry, ["ACT", "A"]).tolist()
        [[2, 3, 0], [2, 1, 1]]
    """
    place = {letter: number for number, letter in enumerate(entry["alphabet"])}
    symbols = np.full((len(texts), entry["length"]), place[END], np.uint16)
    for row, text in enumerate(texts):
        kept = text[: entry["length"]]
        symbols[row, : len(kept)] = [place.get(letter, place[UNKNOWN]) for letter in kept]
    return symbols
