"""What an array is by its shape, and how large its tokens are to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metamae.arguments import is_whole
from metamae.data.dataset import Array
from metamae.errors import ConfigError, DataError, shown, suggest

KINDS = ("table", "signal", "image", "tokens", "audio")
"""What own data may be said to be."""

WIDE = 256
"""Columns of unnamed numbers up to which a row is a table; beyond it is a series."""
SYMBOLS = 1024
"""Symbols of a sequence of whole numbers."""
COUNT, LEAST, MOST = 40, 16, 64
"""Tokens aimed at, and their range where the data allow it."""


def check_kind(kind: str) -> None:
    """Raise ``ConfigError`` for a kind that is none."""
    known = ("auto", *KINDS)
    if kind not in known:
        raise ConfigError(f"expected a kind among {', '.join(known)}, {suggest(str(kind), known)}")


def guess_kind(array: Array, name: str) -> tuple[str, str]:
    """What an array is, and why, in words.

    Raises:
        DataError: no axis for examples and one for values, more than four, or no numbers.

    Example:
        >>> import numpy as np
        >>> from metamae.data.own.guessing import guess_kind
        >>> guess_kind(np.zeros((10, 3, 500)), "x")[0], guess_kind(np.zeros((10, 28, 28)), "x")[0]
        ('signal', 'image')
    """
    shape = tuple(array.shape)
    if array.dtype.kind not in "fiub":
        raise DataError(f"expected numbers in {name}, got values of type {array.dtype}")
    if array.ndim == 2:
        if array.dtype.kind in "iub" and _are_symbols(array):
            return "tokens", f"(N, L) = {shape} small whole numbers"
        if shape[1] > WIDE:
            return "signal", f"(N, T) = {shape}, more than {WIDE} columns: one channel"
        return "table", f"(N, columns) = {shape}"
    if array.ndim == 3:
        if array.dtype == np.uint8 or (shape[1] == shape[2] and shape[1] >= 8):
            return "image", f"(N, height, width) = {shape}"
        return "signal", f"three axes {shape}: examples, channels, steps"
    if array.ndim == 4:
        return "image", f"four axes {shape}"
    raise DataError(
        f"expected {name} with examples along the first of 2 to 4 axes: (N, columns), (N, channels,"
        f" steps) or (N, height, width, channels), got shape {shape}"
    )


def _are_symbols(array: Array) -> bool:
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    return low >= 0 and high < SYMBOLS and array.shape[1] >= 2


def channels_last(shape: Sequence[int], kind: str) -> bool:
    """Whether the last axis holds the channels, by the sizes of an example's axes.

    A signal ``(C, T)`` has fewer channels than steps. An image has 1 to 4 channels, or fewer than
    it has rows and columns.

    Example:
        >>> from metamae.data.own.guessing import channels_last
        >>> channels_last((500, 3), "signal"), channels_last((32, 32, 3), "image")
        (True, True)
        >>> channels_last((3, 500), "signal"), channels_last((13, 64, 64), "image")
        (False, False)
    """
    if kind == "signal":
        return shape[1] < shape[0] and shape[1] <= 64
    first, last = shape[0], shape[-1]
    return last < first or (last <= 4 and last <= first)


def choose_length(length: int, asked: Sequence[int]) -> int:
    """Steps of a token: the one asked for, or so many that there are about 40 tokens.

    Steps that fill no token are cut off at the end; a size that cuts little is preferred.

    Example:
        >>> from metamae.data.own.guessing import choose_length
        >>> [choose_length(steps, ()) for steps in (20, 101, 1000)], choose_length(9, (3,))
        ([1, 2, 25], 3)
    """
    if asked:
        return _asked(asked, 1, (length,))[0]
    return min(range(1, length // 2 + 1), key=lambda t: (_badness(t, length, length // t), t))


def choose_patch(height: int, width: int, asked: Sequence[int]) -> tuple[int, int]:
    """Height and width of a patch: as asked, or square with about 40 patches.

    Example:
        >>> from metamae.data.own.guessing import choose_patch
        >>> choose_patch(28, 28, ()), choose_patch(224, 224, ()), choose_patch(8, 8, ())
        ((4, 4), (32, 32), (2, 2))
    """
    if asked:
        sizes = _asked(asked, 2, (height, width))
        return sizes[0], sizes[-1]
    least = 2 if min(height, width) >= 8 else 1  # single pixels are told by their neighbours

    def badness(side: int) -> tuple[float, int]:
        kept = (height // side * side) * (width // side * side)
        count = (height // side) * (width // side)
        return _loss(1 - kept / (height * width)) + _range(count), -side

    side = min(range(least, max(least, min(height, width)) + 1), key=badness)
    return side, side


def _badness(size: int, length: int, count: int) -> float:
    return _loss(1 - count * size / length) + _range(count)


def _loss(share: float) -> float:
    """How bad it is to cut off a share of an example: whole examples first."""
    return 0.5 + 20 * share if share > 0 else 0.0


def _range(count: int) -> float:
    outside = max(LEAST / count, count / MOST, 1.0)
    return abs(math.log(count / COUNT)) + 4 * math.log(outside) + (100 if count < 2 else 0)


def _asked(asked: Sequence[int], most: int, sides: Sequence[int]) -> tuple[int, ...]:
    fits = len(asked) <= most and all(is_whole(size) and size >= 1 for size in asked)
    if not fits:
        raise ConfigError(
            f"expected {most} positive whole number{'s' * (most > 1)} as the token size, got "
            f"{shown(list(asked))}"
        )
    for size, side in zip((*asked, asked[-1]), sides, strict=False):
        if size > side:
            raise ConfigError(f"expected a token size up to {side}, got {size}")
    return tuple(asked)
