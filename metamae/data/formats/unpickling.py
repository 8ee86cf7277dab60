"""A reader of pickles that builds plain values and NumPy arrays, and believes nothing.

A pickle is a program: it can call any function of any library, and it gives objects whatever state
it likes. Here only what is named below is called. An array is made when its type is a plain one and
its data have as many bytes or entries as its shape says; NumPy's own reader of such states looks at
neither, and takes what lies behind the data for pointers.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import IO, Any, ClassVar

import numpy as np

from metamae.data.formats.pickled_arrays import (
    NDARRAY,
    OBJECT,
    Dtype,
    Shrink,
    array_of_buffer,
    blank_array,
    fill,
    made_once,
    number,
)
from metamae.errors import DataError, is_systems, reason_of, shown

_PLAIN_KEYS = frozenset((str, bytes, int, float, bool, type(None)))
"""Types of keys. Hashing a tuple of tuples of tuples ... ends the process."""


class Inert:
    """Stands for an object or a call of pandas: remembers arguments and state, does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        """Remember the arguments."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **_: Any) -> None:
        pass


_NUMPY: dict[str, Any] = {
    "_reconstruct": blank_array,
    "_frombuffer": array_of_buffer,
    "scalar": number,
    "ndarray": NDARRAY,
    "dtype": Dtype,
}


def _no_bytes() -> bytes:
    """How old pickle protocols write ``b""``."""
    return b""


_BUILTINS = {"slice": slice, "object": OBJECT}


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise pickle.UnpicklingError("it rebuilds something that is no part of a table")
    return kind(state)


class _Unpickler(pickle._Unpickler):
    """Knows plain values and NumPy arrays, of a table also pandas by name only; no more.

    It is Python's own reader in Python: the one in C believes how large a thing says it is, and
    ends the process where a key is nested deeply.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    shrink: Shrink | None = None

    def __init__(self, file: IO[bytes], *, table: bool) -> None:
        super().__init__(file, encoding="latin1")
        self.table = table
        self.read, self.readline = file.read, file.readline
        self.proto = 0

    def load(self) -> Any:
        """The object; Python's own loop, without the bookkeeping of frames, which only buffer."""
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            while code := read(1):
                dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise EOFError("it ends before its data do")

    def skip_frame(self) -> None:
        """The length of what follows, to read it at once."""
        self.read(8)

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        if root == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module in ("builtins", "__builtin__") and name == "bytes":
            return _no_bytes
        if not self.table:
            raise pickle.UnpicklingError(f"it asks for {shown(module)[1:-1]}.{shown(name)[1:-1]}")
        if root == "pandas":
            return type(name, (Inert,), {})
        if module in ("copyreg", "copy_reg") and name == "_reconstructor":
            return _reconstruct
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if root == "pyarrow":
            raise pickle.UnpicklingError(
                "its texts are kept by pyarrow; open it with pandas and save it with plain "
                "columns: frame = frame.astype(object); frame.columns = "
                "frame.columns.astype(object); frame.to_pickle(...)"
            )
        raise pickle.UnpicklingError(
            f"it asks for {shown(module)[1:-1]}.{shown(name)[1:-1]}, which no table needs"
        )

    def build(self) -> None:
        """Give a record or an array its state."""
        state = self.stack.pop()
        thing = self.stack[-1]
        if type(thing) is np.ndarray:
            fill(thing, state, self.shrink)
        elif type(thing) is Dtype:
            thing.build(state)
        elif isinstance(thing, Inert):
            thing.state = state
        else:
            raise pickle.UnpicklingError(f"it changes {type(thing).__name__}")

    def set_item(self) -> None:
        """One entry of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        """Several entries of a dict."""
        self._set(self._marked())

    def make_dict(self) -> None:
        """A dict of what is on the stack."""
        pairs = self._marked()
        self.append({})
        self._set(pairs)

    def _marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items = self.stack
        self.stack = self.metastack.pop()
        self.append = self.stack.append
        return items

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not _PLAIN_KEYS.issuperset(map(type, pairs[::2])):
            raise pickle.UnpicklingError("it has a dict with keys that are no texts or numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append_items(self) -> None:
        """Several entries of a list."""
        items = self._marked()
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
    (pickle.FRAME, _Unpickler.skip_frame),
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


class _ShrinkingUnpickler(_Unpickler):
    """Makes arrays smaller as it reads them, and does not remember what they were made of.

    A pickle numbers nearly all it holds, in case that is asked for again, and bytes of arrays
    never are. Remembering them would keep the whole file in memory.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)
    memo: dict[int, Any]

    def __init__(self, file: IO[bytes], *, table: bool, shrink: Shrink) -> None:
        super().__init__(file, table=table)
        self.shrink, self.numbered = shrink, 0

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self.small_array if found is array_of_buffer else found

    def small_array(self, *arguments: Any) -> Any:
        """An array of the fifth protocol."""
        assert self.shrink is not None
        return self.shrink(array_of_buffer(*arguments))

    def remember(self) -> None:
        """Number the top of the stack."""
        self.remember_at(self.numbered)

    def remember_short(self) -> None:
        """The same with a number of one byte."""
        self.remember_at(self.read(1)[0])

    def remember_long(self) -> None:
        """The same with a number of four bytes."""
        self.remember_at(struct.unpack("<I", self.read(4))[0])

    def remember_at(self, place: int) -> None:
        """Number the top of the stack, and keep it unless it is part of one array."""
        thing = self.stack[-1]
        self.numbered += 1
        if not made_once(thing):
            self.memo[place] = thing


for _code, _remember in (
    (pickle.MEMOIZE, _ShrinkingUnpickler.remember),
    (pickle.BINPUT, _ShrinkingUnpickler.remember_short),
    (pickle.LONG_BINPUT, _ShrinkingUnpickler.remember_long),
):
    _ShrinkingUnpickler.dispatch[_code[0]] = _remember


def unpickle(
    file: IO[bytes], what: str, name: str, *, table: bool, shrink: Shrink | None = None
) -> Any:
    """What a pickle holds; it has to be the whole file.

    Args:
        file: The pickle.
        what: What it is expected to be, for errors.
        name: What the file is called in an error.
        table: Whether objects of pandas become records; otherwise they are refused.
        shrink: Given every array of numbers as soon as it is read; what it returns is kept instead.

    Raises:
        DataError: damage, or more than plain values and arrays.
    """
    try:
        if not isinstance(file, io.BufferedReader | io.BytesIO):  # it is read byte by byte
            file = io.BufferedReader(file)  # type: ignore[type-var]
        reader = (
            _Unpickler(file, table=table)
            if shrink is None
            else _ShrinkingUnpickler(file, table=table, shrink=shrink)
        )
        value = reader.load()
        if file.read(1):
            raise pickle.UnpicklingError("it goes on after its end")
    except MemoryError as fault:
        raise DataError(f"expected {what} in {name} that fits the memory, got more") from fault
    # A damaged pickle fails in as many ways as there are instructions in it.
    except Exception as fault:
        if is_systems(fault):
            raise
        raise DataError(f"expected {what} in {name}: {reason_of(fault)}") from fault
    return value
