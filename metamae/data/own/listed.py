"""Files that say one thing a row: labels, names, groups or parts, beside the data."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.formats.limits import RECORD
from metamae.data.formats.tables import bounded_lines
from metamae.data.own.facts import Values, as_text, match_ids
from metamae.errors import DataError, is_systems, reason_of


def read_listed(path: Path, ids: Sequence[Any]) -> Values:
    """One value a row: a vector of ``.npy``, or a CSV file with a header.

    A CSV file of one column is taken line by line, one of two columns by what the first names: the
    ids, in any order.

    Args:
        path: The file.
        ids: Names of the rows.

    Raises:
        DataError: neither, or names without a line.
    """
    if path.suffix.lower() == ".npy":
        array = load_array(path)
        if array.ndim != 1:
            raise DataError(f"expected one value a row in {path}, got shape {array.shape}")
        return list(array.tolist())
    csv.field_size_limit(RECORD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            header, *rows = csv.reader(bounded_lines(text, path.name), delimiter=separator)
    except (UnicodeDecodeError, csv.Error, ValueError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(
            f"expected a table with a header in {path}, got {reason_of(fault)}"
        ) from fault
    rows = [row for row in rows if row]
    if len(header) not in (1, 2) or any(len(row) != len(header) for row in rows):
        raise DataError(
            f"expected one column, or a name and a value, in every line of {path}, got "
            f"{len(header)} in its header"
        )
    if len(header) == 1:
        return [row[0] for row in rows]
    return match_ids(dict(rows), [as_text(name) for name in ids], str(path))


def load_array(path: Path, *, mapped: bool = False) -> Any:
    """An array or an archive of arrays; never code.

    Raises:
        DataError: damage, or objects in place of numbers.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    # What damage makes of an array has no common name.
    except Exception as fault:
        if is_systems(fault) or isinstance(fault, MemoryError):
            raise
        reason = describe_fault(fault)
        with path.open("rb") as file:
            head = file.read(6)
        if not head.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
            # NumPy takes whatever it does not know for a pickle.
            reason = "a file that NumPy did not write, or a damaged one"
        raise DataError(f"expected arrays in {path}, got {reason}") from fault


def describe_fault(fault: Exception) -> str:
    """Why an array could not be read."""
    if any(word in str(fault) for word in ("allow_pickle", "Object arrays", "Python objects")):
        return (
            "objects in place of numbers (rows of different length, or texts): pad or cut rows to "
            "one length and save an array of numbers"
        )
    return f"a damaged file ({reason_of(fault)})"
