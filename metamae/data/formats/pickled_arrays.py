"""Arrays in pickles: made when type, shape and data agree, and perhaps made smaller at once."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import shown

Shrink = Callable[[Array], Array]
"""Takes an array of numbers as it is read and gives back what is to be kept of it."""

_MOST_AXES = 8
_LONG = 256
_DTYPE = re.compile(r"[<>|=]?(?:[biufcSUOMm]\d{0,6}|\?)")
_UNITS = frozenset(("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"))


class Marker:
    """Stands for the class of arrays, which is never called."""


NDARRAY, OBJECT = Marker(), Marker()


class Dtype:
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
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")
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


def blank_array(kind: Any, *_: Any) -> Array:
    """What waits for its state, see :func:`fill`."""
    if kind is not NDARRAY:
        raise pickle.UnpicklingError("it has an array of a class that is not NumPy's")
    return np.zeros(0, np.int8)


def fill(array: Array, state: Any, shrink: Shrink | None) -> None:
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
    if shrink is not None and not dtype.hasobject:
        given = np.frombuffer(raw, dtype).reshape(sizes, order="F" if columns_first else "C")
        small = shrink(given)
        if small is not given:
            sizes, dtype, columns_first, raw = small.shape, small.dtype, False, small.tobytes()
    array.__setstate__((1, sizes, dtype, bool(columns_first), raw))  # type: ignore[arg-type]


def _dtype_of(kind: Any) -> np.dtype[Any]:
    if type(kind) is not Dtype:
        raise pickle.UnpicklingError(f"it has an array of type {type(kind).__name__}")
    return kind.dtype


def array_of_buffer(buffer: Any, kind: Any, shape: Any, order: Any = "C") -> Array:
    """An array as the fifth protocol writes it."""
    dtype = _dtype_of(kind)
    if type(buffer) not in (bytes, bytearray) or dtype.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"it has an array {dtype} in {type(buffer).__name__}")
    sizes = _checked_shape(shape, dtype, len(buffer))
    return np.frombuffer(buffer, dtype).reshape(sizes, order=order)


def number(kind: Any, raw: Any) -> Any:
    """A number that NumPy pickled alone."""
    dtype = _dtype_of(kind)
    content = raw.encode("latin1") if type(raw) is str else raw
    if type(content) is not bytes or dtype.hasobject or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError(f"it has a number {dtype} in {type(raw).__name__}")
    return np.frombuffer(content, dtype)[0]


def made_once(thing: Any) -> bool:
    """Whether this is what one array is made of: long bytes, or arguments with a type of arrays.

    A pickle numbers such things too, and never asks for them again.
    """
    if type(thing) is tuple:
        return any(type(part) in (Dtype, Marker) or _is_long(part) for part in thing)
    return _is_long(thing)


def _is_long(thing: Any) -> bool:
    return type(thing) in (bytes, bytearray, str) and len(thing) > _LONG
