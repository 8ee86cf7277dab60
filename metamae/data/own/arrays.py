"""Arrays of numbers, from memory or from ``.npy`` and ``.npz``: inputs, labels and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.own.facts import Asked, Facts, Values, find_name, gather, is_file
from metamae.data.own.listed import describe_fault, load_array, read_listed
from metamae.errors import DataError, is_systems, shown

SUFFIXES = (".npy", ".npz")
"""Files that hold arrays."""
LABEL = "y"
"""Key that is taken as the label without being named."""


@dataclass(frozen=True)
class Arrays:
    """Arrays by name, examples first.

    Attributes:
        data: All of them, those that are no inputs included.
        name: What they are called in errors.
    """

    data: Mapping[str, Array]
    name: str

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.data.values())))

    def with_defaults(self, asked: Asked) -> tuple[Asked, tuple[str, ...]]:
        """Key ``y`` is the label, where no other was named."""
        array = self.data.get(LABEL)
        if asked.label or array is None or len(self.data) < 2 or array.ndim != 1:
            return asked, ()
        if LABEL in (asked.ids, asked.group, asked.split, *asked.drop):
            return asked, ()
        named = Asked(
            label=LABEL, ids=asked.ids, group=asked.group, split=asked.split, drop=asked.drop
        )
        return named, ("key 'y' is taken as the label; drop it to pretrain without",)

    def facts(self, asked: Asked) -> Facts:
        """Keys, or files, that say something of the rows."""
        ids = [str(row) for row in range(len(self))]

        def read(role: str, name: str) -> Values:
            if name in self.data:
                array = self.data[name]
                if array.ndim != 1:
                    raise DataError(
                        f"expected one value a row in {name!r} for {role}, got shape {array.shape}"
                    )
                return list(array.tolist())
            if is_file(name):
                return read_listed(Path(name), ids)
            if len(self.data) < 2:
                raise DataError(
                    f"expected a file (.npy, .csv) with {role} of {self.name}, one value a row, "
                    f"got {name!r}, which is no such file"
                )
            what = f"a file (.npy, .csv) or a key for {role} of {self.name}"
            return [find_name(name, list(self.data), what)]

        return gather(asked, len(self), read, ids)

    def without(self, asked: Asked) -> Arrays:
        """The arrays that are inputs.

        Raises:
            DataError: none is left, or they differ in length.
        """
        for name in asked.drop:
            find_name(name, list(self.data), f"keys to drop from {self.name}")
        roles = {asked.label, asked.ids, asked.group, asked.split, *asked.drop}
        kept = {key: array for key, array in self.data.items() if key not in roles}
        if not kept:
            raise DataError(f"expected an array to learn from in {self.name}, all are set aside")
        return Arrays(kept, self.name)

    def refuse_vectors(self) -> None:
        """Raise ``DataError`` for an array of one value a row: it is no input."""
        vectors = [name for name, array in self.data.items() if array.ndim == 1]
        if vectors:
            raise DataError(
                f"expected two axes or more in every input of {self.name}, got one in "
                f"{', '.join(map(repr, vectors))}; name it as label, ids, group or split, or drop "
                "it"
            )


def read_arrays(path: Path) -> Arrays:
    """Read a file; a single array stays on disk until its rows are asked for.

    Raises:
        DataError: damage, objects, no rows, or arrays of different length.
    """
    if path.suffix.lower() == ".npy":
        return as_arrays({"x": load_array(path, mapped=True)}, path.name)
    archive = load_array(path)
    try:
        with archive:
            data = {key: archive[key] for key in archive.files}
    # What damage makes of an archive has no common name.
    except Exception as fault:
        if is_systems(fault) or isinstance(fault, MemoryError):
            raise
        raise DataError(f"expected arrays in {path}, got {describe_fault(fault)}") from fault
    return as_arrays(data, path.name)


def as_arrays(data: Mapping[str, Any], name: str) -> Arrays:
    """Check arrays from memory.

    Raises:
        DataError: no arrays, lists of different length, no rows, or differing numbers of them.
    """
    arrays: dict[str, Array] = {}
    for key, values in data.items():
        try:
            array = values if isinstance(values, np.ndarray) else np.asarray(values)
        except ValueError as fault:  # lists of different length
            raise DataError(_ragged(str(key), name)) from fault
        if array.dtype.hasobject and array.ndim == 1 and _holds_rows(array):
            raise DataError(_ragged(str(key), name))
        if array.ndim == 0:
            raise DataError(f"expected examples along the first axis of {key!r}, got one number")
        arrays[str(key)] = array
    if not arrays:
        raise DataError(f"expected arrays in {name}, got none")
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"expected as many rows in every array of {name}, got {shown(lengths)}; put training "
            "and test rows into one array, with a key that says which is which (split)"
        )
    if not min(lengths.values()):
        raise DataError(f"expected rows in {name}, got none")
    return Arrays(arrays, name)


def _holds_rows(array: Array) -> bool:
    return (
        len(array) > 0
        and isinstance(array[0], Sequence | np.ndarray)
        and not isinstance(array[0], str | bytes)
    )


def _ragged(key: str, name: str) -> str:
    return (
        f"expected examples of one shape in {key!r} of {name}, got rows of different length; pad "
        "or cut them to one length"
    )
