"""Pickled pandas tables and batches of images, read without running code from the file.

A pickle can name any function of any library. Here arrays are built of parts that are checked first,
and everything of pandas becomes an inert record of its arguments, from which the columns are taken.
The old pickles of public archives, which today's pandas refuses, are read the same way.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from contextlib import suppress
from itertools import islice
from typing import IO, Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError, reason_of, shown

_MOST_AXES, _MOST_LEVELS, _MOST_ITEMS, _MOST_PARTS = 8, 8, 1 << 24, 10_000
"""Of an array; of lists in lists, and entries of all of them; of records around an array."""

_WRAPPERS = frozenset(
    ("StringArray", "NumpyExtensionArray", "PandasArray", "DatetimeArray", "TimedeltaArray")
)
"""What of pandas holds the values themselves; a Categorical, for instance, holds their codes."""

_PLAIN_KEYS = frozenset((str, bytes, int, float, bool, type(None)))
"""Types of keys. Hashing a tuple of tuples of tuples ... ends the process."""

_DTYPE = re.compile(r"[<>|=]?(?:[biufcSUOMm]\d{0,6}|\?)")
_UNITS = frozenset("Y M W D h m s ms us ns ps fs as".split())
_PIECE = 1 << 26


class _Marker:
    """Stands for the class of arrays, which is never called."""


_NDARRAY, _OBJECT = _Marker(), _Marker()


class _Inert:
    """Stands for an object or a call of pandas: remembers arguments and state, does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **_: Any) -> None:
        pass


class _Dtype:
    """A type of array elements, made of a short text and a few checked numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"it has an array of type {shown(code)}")
        self.dtype = np.dtype(object) if "O" in text else np.dtype(text)

    def build(self, state: Any) -> None:
        """Take byte order and unit of time from a state; structured types are refused."""
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise pickle.UnpicklingError("it has an array of a structured type")
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if self.dtype.kind in "mM":
            unit, count, *_ = state[8][1]
            unit = unit.decode("latin1") if isinstance(unit, bytes) else unit
            if unit not in _UNITS or count != 1:
                raise pickle.UnpicklingError(f"it has times in {shown(count)} {shown(unit)}")
            self.dtype = np.dtype(f"{self.dtype.char}8[{unit}]")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)
        elif order not in ("|", "="):
            raise pickle.UnpicklingError(f"it has an array of byte order {shown(order)}")


def _checked_shape(shape: Any, dtype: np.dtype[Any], size: int) -> tuple[int, ...]:
    """A shape whose number of elements is that of the data."""
    sizes = shape if type(shape) is tuple else (shape,)
    if len(sizes) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in sizes):
        raise pickle.UnpicklingError(f"it has an array of shape {shown(shape)}")
    if math.prod(sizes) * (1 if dtype.hasobject else dtype.itemsize) != size:
        raise pickle.UnpicklingError(
            f"it has an array {dtype} of shape {shown(shape)} with {size} "
            f"{'elements' if dtype.hasobject else 'bytes'}"
        )
    return sizes


def _blank_array(kind: Any, *_: Any) -> Array:
    """What waits for its state, see :func:`_fill`."""
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it has an array of a class that is not NumPy's")
    return np.zeros(0, np.int8)


def _fill(array: Array, state: Any) -> None:
    """Give a blank array its contents. NumPy would believe any state; it gets a checked one."""
    if array.shape != (0,) or array.dtype != np.int8:
        raise pickle.UnpicklingError("it fills an array twice")
    shape, kind, columns_first, raw = state[-4:]
    dtype = _dtype_of(kind)
    if dtype.hasobject:
        if type(raw) is not list:
            raise pickle.UnpicklingError(f"it has an array of objects in {type(raw).__name__}")
    elif type(raw) is str:
        raw = raw.encode("latin1")  # bytes of Python 2
    elif type(raw) is not bytes:
        raise pickle.UnpicklingError(f"it has an array of numbers in {type(raw).__name__}")
    sizes = _checked_shape(shape, dtype, len(raw))
    array.__setstate__((1, sizes, dtype, columns_first is True or columns_first == 1, raw))


def _dtype_of(kind: Any) -> np.dtype[Any]:
    if type(kind) is not _Dtype:
        raise pickle.UnpicklingError(f"it has an array of type {type(kind).__name__}")
    return kind.dtype


def _array_of_buffer(buffer: Any, kind: Any, shape: Any, order: Any = "C") -> Array:
    """An array as the fifth protocol writes it."""
    dtype = _dtype_of(kind)
    if type(buffer) not in (bytes, bytearray) or dtype.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"it has an array {dtype} in {type(buffer).__name__}")
    sizes = _checked_shape(shape, dtype, len(buffer))
    return np.frombuffer(buffer, dtype).reshape(sizes, order=order)


def _number(kind: Any, raw: Any) -> Any:
    """A number that NumPy pickled alone."""
    dtype = _dtype_of(kind)
    content = raw.encode("latin1") if type(raw) is str else raw
    if type(content) is not bytes or dtype.hasobject or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError(f"it has a number {dtype} in {type(raw).__name__}")
    return np.frombuffer(content, dtype)[0]


_NUMPY: dict[str, Any] = {
    "_reconstruct": _blank_array,
    "_frombuffer": _array_of_buffer,
    "scalar": _number,
    "ndarray": _NDARRAY,
    "dtype": _Dtype,
}


def _no_bytes() -> bytes:
    """How old pickle protocols write ``b""``."""
    return b""


_BUILTINS = {"slice": slice, "bytes": _no_bytes, "object": _OBJECT}


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise pickle.UnpicklingError("it rebuilds something that is no part of a table")
    return kind(state)


class _Unpickler(pickle._Unpickler):
    """Knows plain values and NumPy arrays, of a table also pandas by name only; no more.

    It is Python's own reader in Python: the one in C believes how large a thing says it is, and
    ends the process where a key is nested deeply.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], *, table: bool) -> None:
        super().__init__(_Pieces(file), encoding="latin1")
        self.table = table

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        if root == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if not self.table:
            raise pickle.UnpicklingError(f"it asks for {shown(module)[1:-1]}.{shown(name)[1:-1]}")
        if root == "pandas":
            return type(name, (_Inert,), {})
        if module in ("copyreg", "copy_reg") and name == "_reconstructor":
            return _reconstruct
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if root == "pyarrow":
            raise pickle.UnpicklingError(
                "its texts are kept by pyarrow; open it with pandas and save it with plain ones: "
                "frame.columns = list(frame.columns); "
                "frame.astype(object).rename(columns=str).to_pickle(...) under "
                "pandas.option_context('future.infer_string', False)"
            )
        raise pickle.UnpicklingError(
            f"it asks for {shown(module)[1:-1]}.{shown(name)[1:-1]}, which no table needs"
        )

    def build(self) -> None:
        """Give a record or an array its state."""
        state = self.stack.pop()
        thing = self.stack[-1]
        if type(thing) is np.ndarray:
            _fill(thing, state)
        elif type(thing) is _Dtype:
            thing.build(state)
        elif isinstance(thing, _Inert):
            thing.state = state
        else:
            raise pickle.UnpicklingError(f"it changes {type(thing).__name__}")

    def set_item(self) -> None:
        """One entry of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        """Several entries of a dict."""
        self._set(self.pop_mark())

    def make_dict(self) -> None:
        """A dict of what is on the stack."""
        pairs = self.pop_mark()
        self.append({})
        self._set(pairs)

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not _PLAIN_KEYS.issuperset(map(type, pairs[::2])):
            raise pickle.UnpicklingError("it has a dict with keys that are no texts or numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append_items(self) -> None:
        """Several entries of a list."""
        items = self.pop_mark()
        self._extend(items)

    def append_item(self) -> None:
        """One entry of a list."""
        item = self.stack.pop()
        self._extend([item])

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"it appends to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def byte_array(self) -> None:
        """Bytes that may be changed; Python's own would fill up what is missing."""
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(size)
        if len(content) != size:
            raise EOFError("it ends before its data do")
        self.append(bytearray(content))

    def refuse(self) -> None:
        """What neither a table nor a batch is made of."""
        raise pickle.UnpicklingError("it holds a set, or what is kept outside of it")


for _code, _method in (
    (pickle.BUILD, _Unpickler.build),
    (pickle.SETITEM, _Unpickler.set_item),
    (pickle.SETITEMS, _Unpickler.set_items),
    (pickle.DICT, _Unpickler.make_dict),
    (pickle.APPEND, _Unpickler.append_item),
    (pickle.APPENDS, _Unpickler.append_items),
    (pickle.BYTEARRAY8, _Unpickler.byte_array),
    *((code, _Unpickler.refuse) for code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)),
    *((code, _Unpickler.refuse) for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4)),
    *((code, _Unpickler.refuse) for code in (pickle.PERSID, pickle.BINPERSID)),
    *((code, _Unpickler.refuse) for code in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)),
):
    _Unpickler.dispatch[_code[0]] = _method


class _Pieces:
    """A file that asks for memory as it gets data, however much it is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.readline = file, file.readline

    def read(self, size: int) -> bytes:
        if size <= _PIECE:
            return self.file.read(size)
        parts = []
        while size > 0 and (part := self.file.read(min(size, _PIECE))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _load(file: IO[bytes], what: str, name: str, *, table: bool) -> Any:
    """What a pickle holds; it has to be the whole file."""
    try:
        value = _Unpickler(file, table=table).load()
        if file.read(1):
            raise pickle.UnpicklingError("it goes on after its end")
    except MemoryError as fault:
        raise DataError(f"expected {what} in {name} that fits the memory, got more") from fault
    # A damaged pickle fails in as many ways as there are instructions in it.
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise
        raise DataError(f"expected {what} in {name}: {reason_of(fault)}") from fault
    return value


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
    frame = _load(file, "a pickled table", name, table=True)
    try:
        return _columns(_manager(frame))
    except DataError as fault:
        raise DataError(f"expected a pickled table of plain columns in {name}: {fault}") from fault
    except Exception as fault:
        raise DataError(
            f"expected a pickled table of a known pandas version in {name}, got "
            f"{type(frame).__name__} ({reason_of(fault)}); open it with the pandas that wrote it, and use the archive's other format"
        ) from fault


def _manager(frame: Any) -> _Inert:
    state = frame.state if isinstance(frame.state, dict) else frame.args[0]
    manager: _Inert = state["_mgr"] if "_mgr" in state else state["_data"]
    return manager


def _columns(manager: _Inert) -> dict[str, Array]:
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
    waiting, seen = [value], 0
    while waiting and seen < _MOST_PARTS:
        thing = waiting.pop()
        seen += 1
        if isinstance(thing, np.ndarray):
            return thing
        inside: Any = ()
        if isinstance(thing, _Inert):
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
    if isinstance(block, _Inert) and cls.__name__.startswith("__pyx_unpickle_"):
        cls = block.args[0]
    kind = cls.__name__
    if isinstance(block, _Inert) and kind not in _WRAPPERS:
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
    level, count = [value], 0
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
    batch = _load(file, "a pickled batch of images", name, table=False)
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
