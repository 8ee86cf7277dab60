"""What a column of a table holds: numbers, dates, categories, sequences, or nothing to learn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.libraries import need_module
from metamae.data.own.facts import as_text, is_missing
from metamae.data.own.targets import parse_numbers
from metamae.errors import DataError, shown

MOSTLY = 0.9
"""Share of numbers from which a column of texts is one of numbers with words in it."""
LEVELS = 100
"""Most levels of a category; the others are rare."""

_DATE = re.compile(r"\d{4}-\d{2}(-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?)?")
_SEQUENCE = re.compile(r"[A-Z*-]{8,}|[acgtun-]{8,}")


@dataclass(frozen=True)
class Column:
    """A column, and what it was taken for.

    Attributes:
        name: Its name.
        kind: ``number``, ``date``, ``category``, ``sequence`` or ``dropped``.
        numbers: float64 values of numbers and dates, NaN where a cell is missing.
        texts: Texts of the others, empty where a cell is missing.
        why: Why it was dropped.
    """

    name: str
    kind: str
    numbers: Array | None = None
    texts: list[str] | None = None
    why: str = ""


def read_column(series: Any, name: str, typed: bool) -> Column:
    """Decide what a column holds.

    Args:
        series: The column, of pandas.
        name: Its name.
        typed: Whether texts were meant as texts; those of a CSV file may be numbers.

    Raises:
        DataError: infinite numbers, words among numbers, or cells that hold more than one value.
    """
    pandas = need_module("pandas", "tables")
    types = pandas.api.types
    if not types.is_bool_dtype(series) and not isinstance(series.dtype, pandas.CategoricalDtype):
        if types.is_datetime64_any_dtype(series) or types.is_timedelta64_dtype(series):
            return _check(Column(name, "date", numbers=read_times(series)))
        if types.is_numeric_dtype(series) and not types.is_complex_dtype(series):
            numbers = series.to_numpy(np.float64, na_value=np.nan)
            return _check(Column(name, "number", numbers=numbers))
    quick = None if typed else plain_numbers(series)
    if quick is not None:
        return _check(Column(name, "number", numbers=quick))
    texts = _texts(series, name)
    there = [text for text in texts if text]
    if not typed or not types.is_string_dtype(series):
        numbers_or_none = None if types.is_bool_dtype(series) else _from_texts(texts, name)
        if numbers_or_none is not None:
            return _check(Column(name, "number", numbers=numbers_or_none))
    if there and all(_DATE.fullmatch(text) for text in there):
        return _check(Column(name, "date", numbers=to_numbers(texts, name, date=True)))
    return _check_texts(Column(name, "category", texts=texts), there)


def plain_numbers(series: Any) -> Array | None:
    """Numbers of a column of texts where all of them are: much faster than one by one.

    Example:
        >>> import pandas
        >>> from metamae.data.own.columns import plain_numbers
        >>> plain_numbers(pandas.Series(["1.5", None])), plain_numbers(pandas.Series(["a"]))
        (array([1.5, nan]), None)
    """
    try:
        filled = series.astype(object).where(series.notna(), "nan")
        numbers: Array = filled.to_numpy().astype(np.float64)
        return numbers
    except (ValueError, TypeError):
        return None


def to_numbers(values: Any, name: str, *, date: bool) -> Array:
    """Numbers of a column that is known to hold them; dates in seconds.

    Raises:
        DataError: texts that are none, or infinite numbers.
    """
    if date:
        pandas = need_module("pandas", "tables")
        cells = [None if is_missing(value) else value for value in values]
        try:
            times = pandas.to_datetime(
                pandas.Series(cells, dtype=object), utc=True, format="ISO8601"
            )
        except (ValueError, TypeError, OverflowError) as fault:
            raise DataError(
                f"expected dates (2024-01-31) in column {name!r}, got others"
            ) from fault
        return read_times(times)
    if getattr(values, "dtype", None) is not None and values.dtype.kind in "fiub":
        numbers = np.asarray(values, np.float64)
    else:
        texts = [as_text(value) for value in values]
        parsed = parse_numbers(texts)
        if parsed is None:
            raise _words(texts, name)
        numbers = parsed
    _refuse_infinite(numbers, name)
    return numbers


def read_times(series: Any) -> Array:
    """Seconds of a column of times, float64, NaN where a cell is missing."""
    pandas = need_module("pandas", "tables")
    if pandas.api.types.is_timedelta64_dtype(series):
        zero = pandas.Timedelta(0)
    else:
        zero = pandas.Timestamp(0, tz=series.dt.tz)
    seconds: Array = ((series - zero) / pandas.Timedelta(seconds=1)).to_numpy(np.float64)
    return seconds


def _texts(series: Any, name: str) -> list[str]:
    texts = []
    for row, value in enumerate(series.tolist()):
        if isinstance(value, list | tuple | dict | set | np.ndarray):
            raise DataError(
                f"expected one value in every cell of column {name!r}, got a "
                f"{type(value).__name__} in row {row}; give it columns of its own"
            )
        texts.append(as_text(value))
    return texts


def _from_texts(texts: list[str], name: str) -> Array | None:
    """Numbers, if the texts are; words among many numbers are refused."""
    if not any(texts):
        return np.full(len(texts), np.nan)
    numbers = parse_numbers(texts)
    if numbers is None and 1 > (1 - _share_of_words(texts)) >= MOSTLY:
        raise _words(texts, name)
    return numbers


def _share_of_words(texts: list[str]) -> float:
    there = [text for text in texts if text]
    return sum(parse_numbers([text]) is None for text in there) / len(there)


def _words(texts: list[str], name: str) -> DataError:
    rows = [row for row, text in enumerate(texts) if text and parse_numbers([text]) is None]
    listed = ", ".join(f"{shown(texts[row])} in row {row}" for row in rows[:3])
    return DataError(
        f"expected numbers in column {name!r}, got {len(rows)} cell{'s' * (len(rows) > 1)} of "
        f"another form ({listed}, rows counted from 0 below the header); empty what is missing, "
        "mend the rest, or drop the column"
    )


def _refuse_infinite(numbers: Array, name: str) -> None:
    rows = np.flatnonzero(np.isinf(numbers))
    if len(rows):
        raise DataError(
            f"expected finite numbers in column {name!r}, got {numbers[rows[0]]} in row "
            f"{rows[0]} ({len(rows)} such rows); empty the cells, or drop the column"
        )


def _check(column: Column) -> Column:
    numbers = column.numbers
    assert numbers is not None
    _refuse_infinite(numbers, column.name)
    there = numbers[~np.isnan(numbers)]
    if not len(there):
        return Column(column.name, "dropped", why="empty")
    if (there == there[0]).all():
        return Column(column.name, "dropped", why="constant")
    if len(there) > 2 and len(there) == len(numbers) and (np.diff(numbers) == 1).all():
        return Column(column.name, "dropped", why="counts the rows")
    return column


def _check_texts(column: Column, there: list[str]) -> Column:
    different, count = set(there), len(column.texts or ())
    if not there:
        return Column(column.name, "dropped", why="empty")
    if len(different) == 1 and len(there) == count:
        return Column(column.name, "dropped", why="constant")
    if all(_SEQUENCE.fullmatch(text) for text in there) and 2 * len(different) > len(there):
        return Column(column.name, "sequence", texts=column.texts)
    if len(different) > 20 and 2 * len(different) > len(there):
        return Column(column.name, "dropped", why="another text in almost every row")
    return column
