"""Pickled pandas tables and batches of images, read without running code from the file.

A pickle can name any function of any library. Here only NumPy's array constructors are called;
everything of pandas becomes an inert record of its arguments, from which the columns are taken.
The old pickles of public archives, which today's pandas refuses, are read the same way.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError

_NUMPY = {
    # NumPy's own constructors, asked from it: their modules were renamed once.
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float64(1).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


def _no_bytes() -> bytes:
    """How old pickle protocols write ``b""``."""
    return b""


_BUILTINS = {"slice": slice, "bytes": _no_bytes}


class _Inert:
    """Stands for an object or a call of pandas: remembers arguments and state, does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Inert:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows plain values and NumPy arrays, of a table also pandas by name only; no more."""

    def __init__(self, file: IO[bytes], *, table: bool) -> None:
        super().__init__(file, encoding="latin1")
        self.table = table

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        if root == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if not self.table:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if root == "pandas":
            return type(name, (_Inert,), {})
        if module in ("copyreg", "copy_reg") and name == "_reconstructor":
            return _reconstruct
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no table needs")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise pickle.UnpicklingError("it rebuilds something that is no part of a table")
    return kind(state)


def read_frame(file: IO[bytes], name: str) -> dict[str, Array]:
    """Columns of a pickled table, by name. The whole table is read into memory.

    Args:
        file: The pickle.
        name: Named in errors.

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
    try:
        frame = _Unpickler(file, table=True).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as fault:
        reason = str(fault) or type(fault).__name__
        raise DataError(f"expected a pickled table in {name}: {reason}") from fault
    try:
        return _columns(_manager(frame))
    except (LookupError, TypeError, ValueError, AttributeError) as fault:
        raise DataError(
            f"expected a pickled table of a known pandas version in {name}, got {type(frame)!r} "
            f"({fault}); open it with the pandas that wrote it, and use the archive's other format"
        ) from fault


def _manager(frame: Any) -> _Inert:
    state = frame.state if isinstance(frame.state, dict) else frame.args[0]
    manager: _Inert = state["_mgr"] if "_mgr" in state else state["_data"]
    return manager


def _columns(manager: _Inert) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    names, blocks = _parts(manager)
    for values, places in blocks:
        at = np.arange(len(names))[places]
        rows = _array(values)
        rows = rows.reshape(len(at), -1) if rows.ndim == 1 else rows
        for place, row in zip(np.atleast_1d(at), rows, strict=True):
            columns[_text(names[place])] = row
    return columns


def _parts(manager: _Inert) -> tuple[Array, list[tuple[Any, Any]]]:
    """Column names, and values with their places, of new and old block managers."""
    state = manager.state
    if isinstance(state, tuple) and len(state) >= 4:
        parts = state[3]["0.14.1"]
        return _array(parts["axes"][0]), [(b["values"], b["mgr_locs"]) for b in parts["blocks"]]
    blocks, axes = manager.args[:2]
    return _array(axes[0]), [(block.args[0], block.args[1]) for block in blocks]


def _array(value: Any) -> Array:
    """The first array inside nested records."""
    array = _search(value)
    if array is None:
        raise ValueError("no array where one has to be")
    return array


def _search(value: Any) -> Array | None:
    if isinstance(value, np.ndarray):
        return value
    inside: Any = ()
    if isinstance(value, _Inert):
        inside = (value.state, *value.args)
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    return next((array for item in inside if (array := _search(item)) is not None), None)


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
    try:
        batch = _Unpickler(file, table=False).load()
    # A damaged pickle fails in as many ways as there are instructions in it.
    except Exception as fault:
        raise DataError(f"expected a pickled batch of images in {name}: {fault}") from fault
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise DataError(f"expected data and labels in {name}, got {type(batch).__name__}")
    data, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
    if data.dtype != np.uint8 or data.shape != (len(labels), _BYTES):
        raise DataError(
            f"expected {len(labels)} rows of {_BYTES} bytes in {name}, got {data.dtype} "
            f"{data.shape}"
        )
    return data.reshape(-1, 3, 32, 32), labels.astype(np.int64)
