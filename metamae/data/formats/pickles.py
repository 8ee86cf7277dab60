"""Pickled pandas tables and batches of images, read without running code from the file.

Everything of pandas becomes an inert record of its arguments, from which the columns are taken, see
:mod:`metamae.data.formats.unpickling`. The old pickles of public archives, which today's pandas
refuses, are read the same way.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import IO, Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.pickled_arrays import Shrink
from metamae.data.formats.unpickling import Inert, unpickle
from metamae.errors import DataError, reason_of, shown

_MOST_LEVELS, _MOST_ITEMS, _MOST_PARTS = 8, 1 << 24, 10_000
"""Of lists in lists, and entries of all of them; of records around an array."""

_WRAPPERS = frozenset(
    ("StringArray", "NumpyExtensionArray", "PandasArray", "DatetimeArray", "TimedeltaArray")
)
"""What of pandas holds the values themselves; a Categorical, for instance, holds their codes."""


def read_frame(file: IO[bytes], name: str, *, shrink: Shrink | None = None) -> dict[str, Array]:
    """Columns of a pickled table, by name. The whole table is read into memory, but what shrinks.

    Args:
        file: The pickle.
        name: Named in errors.
        shrink: Given every array of numbers as soon as it is read, those in cells and those of
            whole columns; what it returns is kept instead.

    Raises:
        DataError: damage, something else than a table, or a pickle that asks for more than arrays.

    Example:
        >>> import io, pickle
        >>> from metamae.data.formats.pickles import read_frame
        >>> read_frame(io.BytesIO(pickle.dumps(print)), "x.pkl")
        Traceback (most recent call last):
            ...
        metamae.errors.DataError: expected a pickled table in x.pkl: it asks for builtins.print, \
which no table needs
    """
    frame = unpickle(file, "a pickled table", name, table=True, shrink=shrink)
    try:
        return _columns(_manager(frame))
    except DataError as fault:
        raise DataError(f"expected a pickled table of plain columns in {name}: {fault}") from fault
    except Exception as fault:
        raise DataError(
            f"expected a pickled table of a known pandas version in {name}, got "
            f"{type(frame).__name__} ({reason_of(fault)}); open it with the pandas that wrote "
            "it, and use the archive's other format"
        ) from fault


def _manager(frame: Any) -> Inert:
    state = frame.state if isinstance(frame.state, dict) else frame.args[0]
    manager: Inert = state["_mgr"] if "_mgr" in state else state["_data"]
    return manager


def _columns(manager: Inert) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    names, blocks = _parts(manager)
    for values, places in blocks:
        at = np.atleast_1d(np.arange(len(names))[places])
        rows = _values(values)
        rows = rows.reshape(len(at), -1) if rows.ndim == 1 else rows
        for place, row in zip(at, rows, strict=True):
            columns[_text(names[place])] = row
    if len(columns) != len(names) or len({len(row) for row in columns.values()}) > 1:
        raise ValueError(f"{len(columns)} columns of different names for {len(names)} names")
    return columns


def _parts(manager: Inert) -> tuple[Array, list[tuple[Any, Any]]]:
    """Column names, and values with their places, of new and old block managers."""
    state = manager.state
    if isinstance(state, tuple) and len(state) >= 4:
        parts = state[3]["0.14.1"]
        return _array(parts["axes"][0]), [(b["values"], b["mgr_locs"]) for b in parts["blocks"]]
    blocks, axes = manager.args[:2]
    return _array(axes[0]), [(block.args[0], block.args[1]) for block in blocks]


def _array(value: Any) -> Array:
    """The first array inside nested records."""
    waiting, seen = [value], 0
    while waiting and seen < _MOST_PARTS:
        thing = waiting.pop()
        seen += 1
        if isinstance(thing, np.ndarray):
            return thing
        inside: Any = ()
        if isinstance(thing, Inert):
            inside = (thing.state, *thing.args)
        elif isinstance(thing, dict):
            inside = thing.values()
        elif isinstance(thing, list | tuple):
            inside = thing
        waiting.extend(reversed(list(islice(inside, _MOST_PARTS))))
    raise ValueError("no array where one has to be")


def _values(block: Any) -> Array:
    """The values of a block: an array, or what pandas wraps around one and means the same by."""
    cls = type(block)
    if isinstance(block, Inert) and cls.__name__.startswith("__pyx_unpickle_"):
        cls = block.args[0]
    kind = cls.__name__
    if isinstance(block, Inert) and kind not in _WRAPPERS:
        raise DataError(
            f"it has a column of pandas' {shown(kind)[1:-1]}, which is not read; save it with "
            "plain columns, frame.astype(object)"
        )
    return _array(block)


def plain_array(value: Any) -> Array:
    """An array, or what nested lists of numbers of a bounded size hold.

    Raises:
        DataError: anything else; lists that hold each other can be of any size.

    Example:
        >>> from metamae.data.formats.pickles import plain_array
        >>> plain_array([[0, 1], [2, 1]]).shape
        (2, 2)
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list):
        raise DataError(f"expected an array, or lists of numbers, got {type(value).__name__}")
    level: list[Any] = [value]
    count = 0
    for _ in range(_MOST_LEVELS):
        lists = [item for item in level if type(item) is list]
        count += sum(map(len, lists))
        count += sum(item.size for item in level if isinstance(item, np.ndarray))
        if count > _MOST_ITEMS:
            break
        level = [item for inner in lists for item in inner]
        if not level:
            with suppress(ValueError, OverflowError):  # rows of different lengths
                return np.asarray(value)
            break
    raise DataError(f"expected an array, or lists of numbers, got {type(value).__name__}")


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


_BYTES = 3 * 32 * 32
"""Of an image in a batch."""


def read_batch(file: IO[bytes], name: str) -> tuple[Array, Array]:
    """One batch of CIFAR-10 or ImageNet32: a pickled dict of ``data`` and ``labels``.

    Args:
        file: The file, as Python 2 or 3 wrote it.
        name: What the file is called in an error.

    Returns:
        uint8 ``(N, 3, 32, 32)`` and int64 ``(N,)``, labels as they are in the file.

    Raises:
        DataError: a damaged file, one that would run code, or other arrays than expected.
    """
    batch = unpickle(file, "a pickled batch of images", name, table=False)
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise DataError(f"expected data and labels in {name}, got {type(batch).__name__}")
    data, labels = plain_array(batch["data"]), plain_array(batch["labels"])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"expected whole numbers as labels in {name}, got {labels.dtype} {labels.shape}"
        )
    if data.dtype != np.uint8 or data.shape != (len(labels), _BYTES):
        raise DataError(
            f"expected {len(labels)} rows of {_BYTES} bytes in {name}, got {data.dtype} "
            f"{data.shape}"
        )
    return data.reshape(-1, 3, 32, 32), labels.astype(np.int64)
