"""A table becomes inputs: numbers, categories, and sequences of letters.

========== ======================== =======================================================
input      kind                     a cell is
========== ======================== =======================================================
row        ``Tabular``              a standard number, or missing (NaN, with ``gaps``)
categories ``Tokens``               a symbol of its column's own: missing, rare, or a level
the column ``Tokens``               letters of a sequence, filled up at its end
========== ======================== =======================================================

The mask takes a share of every input, which needs two tokens or more: a single category becomes
numbers, 1 where a level stands; a single number beside categories becomes one of ten ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.own.columns import Column, plain_numbers, read_column, read_times, to_numbers
from metamae.data.own.facts import as_text
from metamae.data.own.frames import Frame
from metamae.data.own.levels import (
    MISSING,
    RARE,
    fit_levels,
    indicators,
    ranges,
    spell,
    symbols_of_levels,
    symbols_of_ranges,
    tell_unknown,
)
from metamae.data.own.numbers import apply_number, fit_number
from metamae.data.own.parts import Part
from metamae.data.own.sequences import apply_sequence, fit_sequence
from metamae.data.own.telling import describe_table
from metamae.errors import DataError
from metamae.inputs import InputSpec, Tabular, Tokens


def fit_table(frame: Frame, training: Array) -> Part:
    """Decide on every column by its training rows.

    Args:
        frame: The columns that are inputs.
        training: Row numbers of the training rows.

    Raises:
        DataError: fewer than two columns to learn from, or cells of another kind than their column.
    """
    columns = [read_column(frame.data[name], name, frame.typed) for name in frame.data.columns]
    dropped = [column for column in columns if column.kind == "dropped"]
    numbers: list[dict[str, Any]] = []
    for column in columns:
        if column.numbers is not None and column.kind != "dropped":
            fitted = fit_number(column.numbers[training])
            if fitted is None:
                dropped.append(Column(column.name, "dropped", why="constant in training rows"))
            else:
                numbers.append({"column": column.name, "form": column.kind} | fitted)
    categories = [column for column in columns if column.kind == "category"]
    sequences = [column for column in columns if column.kind == "sequence"]
    levels = [fit_levels(column, training) for column in categories]
    if len(levels) == 1:
        numbers += indicators(levels.pop(), categories[0], training)
    if len(numbers) == 1 and levels:
        levels.append(ranges(numbers.pop(), columns, training))
    if len(numbers) == 1 and sequences:
        dropped.append(Column(numbers.pop()["column"], "dropped", why="the only number"))
    recipe: dict[str, Any] = {
        "kind": "table",
        "numbers": numbers,
        "categories": levels,
        "sequences": [
            fit_sequence(column.name, column.texts or [], training) for column in sequences
        ],
        "dropped": [column.name for column in dropped],
    }
    if len({entry["column"] for entry in (*numbers, *levels)}) < 2 and not sequences:
        why = ", ".join(f"{column.name!r} ({column.why})" for column in dropped[:6])
        raise DataError(
            f"expected two columns or more to learn from in {frame.name}, got fewer"
            + (f"; left out: {why}" if why else "")
        )
    cells, _ = _apply(recipe, frame)
    recipe["gaps"] = bool(numbers) and bool(np.isnan(cells["row"]).any())
    return Part(recipe, _inputs(recipe), cells, tuple(describe_table(recipe, cells, dropped)))


def apply_table(recipe: dict[str, Any], frame: Frame, beside: Sequence[str]) -> Part:
    """Other rows of the same columns, in any order.

    Args:
        recipe: Of :func:`fit_table`.
        frame: The rows.
        beside: Columns that may be there besides: labels, ids and the like.

    Raises:
        DataError: missing or unexpected columns, or cells that do not fit them.
    """
    needed = _sources(recipe)
    known = list(frame.data.columns)
    missing = [name for name in needed if name not in known]
    allowed = {*needed, *recipe["dropped"], *beside}
    unexpected = [name for name in known if name not in allowed]
    if missing or unexpected:
        raise DataError(
            f"expected the run's columns in {frame.name}, got "
            + " and ".join(
                f"{len(names)} {word}: {', '.join(map(repr, names[:8]))}"
                for names, word in ((missing, "missing"), (unexpected, "unexpected"))
                if names
            )
            + "; the run was trained on "
            + ", ".join(needed[:12])
            + (f" and {len(needed) - 12} more" if len(needed) > 12 else "")
            + _named_input(missing, beside)
        )
    cells, remarks = _apply(recipe, frame)
    if recipe["numbers"] and not recipe["gaps"] and np.isnan(cells["row"]).any():
        row, place = np.argwhere(np.isnan(cells["row"]))[0]
        raise DataError(
            f"expected a number in every row of column {recipe['numbers'][place]['column']!r}, got "
            f"none in row {row}: the run was trained on data without missing numbers; fill the "
            "cells, or train on data that have some"
        )
    return Part(recipe, _inputs(recipe), cells, tuple(remarks))


def _named_input(missing: Sequence[str], beside: Sequence[str]) -> str:
    both = [name for name in missing if name in beside]
    if not both:
        return ""
    return f"; {both[0]!r} is an input of the run, and cannot be its label or the like too"


def _sources(recipe: dict[str, Any]) -> list[str]:
    """Columns of the file that the inputs are made from, each once."""
    parts = ("numbers", "categories", "sequences")
    return list(dict.fromkeys(entry["column"] for part in parts for entry in recipe[part]))


def _inputs(recipe: dict[str, Any]) -> tuple[InputSpec, ...]:
    inputs: list[InputSpec] = []
    if recipe["numbers"]:
        names = tuple(_name(entry) for entry in recipe["numbers"])
        inputs.append(
            Tabular(name="row", columns=len(names), column_names=names, gaps=recipe["gaps"])
        )
    if recipe["categories"]:
        alphabet = tuple(
            f"{entry['column']}={level}"
            for entry in recipe["categories"]
            for level in (MISSING, RARE, *entry["levels"])
        )
        length = len(recipe["categories"])
        inputs.append(
            Tokens(name="categories", length=length, vocabulary=len(alphabet), alphabet=alphabet)
        )
    for entry in recipe["sequences"]:
        alphabet = tuple(entry["alphabet"])
        inputs.append(
            Tokens(
                name=_input_name(entry["column"]),
                length=entry["length"],
                vocabulary=len(alphabet),
                alphabet=alphabet,
            )
        )
    return tuple(inputs)


def _name(entry: dict[str, Any]) -> str:
    column: str = entry["column"]
    return f"{column}={entry['level']}" if entry["form"] == "level" else column


def _input_name(column: str) -> str:
    return f"{column} letters" if column in ("row", "categories") else column


def _apply(recipe: dict[str, Any], frame: Frame) -> tuple[dict[str, Array], list[str]]:
    cells: dict[str, Array] = {}
    remarks: list[str] = []
    if recipe["numbers"]:
        columns = [apply_number(entry, _raw(entry, frame)) for entry in recipe["numbers"]]
        cells["row"] = np.stack(columns, axis=1)
        remarks += _unknown_indicators(recipe["numbers"], frame)
    symbols, first = [], 0
    for entry in recipe["categories"]:
        if "edges" in entry:
            symbols.append(first + symbols_of_ranges(entry, _numbers(entry, frame)))
            first += 2 + len(entry["levels"])
            continue
        column, unknown = symbols_of_levels(entry, spell(entry["levels"], _texts(entry, frame)))
        symbols.append(first + column)
        first += 2 + len(entry["levels"])
        if unknown:
            remarks.append(tell_unknown(entry["column"], unknown, "share one symbol"))
    if symbols:
        cells["categories"] = np.stack(symbols, axis=1)
    for entry in recipe["sequences"]:
        texts = _texts(entry, frame)
        cells[_input_name(entry["column"])] = apply_sequence(entry, texts)
    return cells, remarks


def _unknown_indicators(numbers: list[dict[str, Any]], frame: Frame) -> list[str]:
    """What is said of levels that no number stands for: they would look like known ones."""
    for entry in numbers:
        if "known" in entry:  # one category at most is made of indicators
            texts = spell(entry["known"], _texts(entry, frame))
            unknown = Counter(text for text in texts if text and text not in entry["known"])
            become = "are 0 in every number that this column became"
            return [tell_unknown(entry["column"], unknown, become)] if unknown else []
    return []


def _raw(entry: dict[str, Any], frame: Frame) -> Array:
    """float64 numbers of a column: its own, its dates', or 1 where it has a level."""
    if entry["form"] != "level":
        return _numbers(entry, frame)
    texts = np.asarray(spell([entry["level"]], _texts(entry, frame)), object)
    return np.where(texts == "", np.nan, (texts == entry["level"]).astype(np.float64))


def _texts(entry: dict[str, Any], frame: Frame) -> list[str]:
    return [as_text(value) for value in frame.data[entry["column"]].tolist()]


def _numbers(entry: dict[str, Any], frame: Frame) -> Array:
    series, name = frame.data[entry["column"]], entry["column"]
    if series.dtype.kind in "fiub" and not hasattr(series.dtype, "na_value"):
        return to_numbers(series.to_numpy(), name, date=False)
    if series.dtype.kind in "mM":  # columns of times have a type of their own
        return read_times(series)
    quick = None if entry["form"] == "date" else plain_numbers(series)
    if quick is not None:
        return to_numbers(quick, name, date=False)
    return to_numbers(series.tolist(), name, date=entry["form"] == "date")
