"""Categories become symbols, or numbers where there is but one; a lone number becomes ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.own.columns import LEVELS, Column
from metamae.data.own.numbers import fit_number

MISSING, RARE = "(missing)", "(rare or unknown)"
"""Symbols that every column of categories begins with."""
RANGES = 10
"""Ranges that a single number beside categories is cut into."""


def symbols_of_levels(entry: dict[str, Any], texts: Sequence[str]) -> tuple[Array, Counter[str]]:
    """Symbols of a column, counted from 0, and texts that are no level.

    Example:
        >>> from metamae.data.own.levels import symbols_of_levels
        >>> symbols_of_levels({"levels": ["red", "blue"]}, ["blue", "", "green"])
        (array([3, 0, 1]), Counter({'green': 1}))
    """
    place = {level: number for number, level in enumerate(entry["levels"], start=2)} | {"": 0}
    symbols = np.asarray([place.get(text, 1) for text in texts], np.int64)
    return symbols, Counter(text for text in texts if text not in place)


def symbols_of_ranges(entry: dict[str, Any], numbers: Array) -> Array:
    """Symbols of a column of numbers: the range that each lies in."""
    places = 2 + np.searchsorted(entry["edges"], numbers, side="right")
    return np.where(np.isnan(numbers), 0, places).astype(np.int64)


def fit_levels(column: Column, training: Array) -> dict[str, Any]:
    """Levels that occur twice or more among the training rows, the most frequent first."""
    texts = column.texts or []
    counts = Counter(texts[row] for row in training)
    counts.pop("", None)
    frequent = sorted(counts, key=lambda level: (-counts[level], level))[:LEVELS]
    levels = [level for level in frequent if counts[level] > 1] or frequent
    return {"column": column.name, "form": "category", "levels": levels}


def indicators(entry: dict[str, Any], column: Column, training: Array) -> list[dict[str, Any]]:
    """A single category as numbers, 1 where a level stands; of two levels one is enough."""
    levels = entry["levels"]
    if len(levels) == 2 and set(column.texts or ()) <= {*levels, ""}:
        levels = levels[:1]
    texts = np.asarray(column.texts, object)[training]
    numbers = []
    for level in levels:
        fitted = fit_number(np.where(texts == "", np.nan, (texts == level).astype(np.float64)))
        if fitted is not None:
            shown = {"column": column.name, "form": "level", "level": level}
            numbers.append(shown | fitted | {"bent": False, "known": entry["levels"]})
    return numbers


def spell(levels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Truth values as a run's levels spell them: a file's ``true`` is a data frame's ``True``.

    Example:
        >>> from metamae.data.own.levels import spell
        >>> spell(["true", "false"], ["True", "", "FALSE", "perhaps"])
        ['true', '', 'false', 'perhaps']
    """
    spelled = {level.lower(): level for level in levels if level.lower() in ("true", "false")}
    if not spelled:
        return list(texts)
    return [text if text in levels else spelled.get(text.lower(), text) for text in texts]


def tell_unknown(column: str, unknown: Counter[str], become: str) -> str:
    """What becomes of cells with levels that a run does not know, in a line."""
    names = ", ".join(list(unknown)[:4])
    return (
        f"column {column!r}: {sum(unknown.values())} cells of rare or unknown levels ({names}) "
        f"{become}"
    )


def ranges(entry: dict[str, Any], columns: Sequence[Column], training: Array) -> dict[str, Any]:
    """A single number as one of ten ranges of as many training rows each."""
    numbers = next(c.numbers for c in columns if c.name == entry["column"])
    assert numbers is not None
    there = numbers[training][~np.isnan(numbers[training])]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, RANGES + 1)[1:-1])).tolist()
    bounds = ["", *(f"{edge:g}" for edge in edges), ""]
    levels = [f"{low} to {high}".strip() for low, high in pairwise(bounds)]
    return {"column": entry["column"], "form": entry["form"], "levels": levels, "edges": edges}
