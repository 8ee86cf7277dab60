"""Rows of memory-mapped arrays: only what is asked for is read, all rows of a batch at once."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

AHEAD_FROM = 2**28
"""Bytes of an array from which its rows are read one by one. Smaller ones are soon whole in page
cache, which the system's own reading around brings about sooner."""


def read_ahead(array: Any, rows: Any) -> int:
    """Ask the system for rows of a large mapped array, before they are looked at one by one.

    Without it a row that is not in memory is waited for, alone, and the system reads around it in
    case its neighbours are wanted: of a shuffled batch they are not. A few megabytes of rows then
    have hundreds read. With it the disk is asked for all rows of a batch together, and for their
    pages only.

    Args:
        array: Rows on disk; of any other kind, or where the system takes no such advice, nothing is
            done.
        rows: What is going to be read: an index array; a slice is left to the system.

    Returns:
        How many rows were asked for.

    Example:
        >>> import numpy as np
        >>> from metamae.data.mapped import read_ahead
        >>> read_ahead(np.zeros((4, 2)), np.array([0, 3]))  # in memory
        0
    """
    if not isinstance(array, np.memmap) or array.nbytes < AHEAD_FROM or isinstance(rows, slice):
        return 0
    index = np.asarray(rows)
    mapping, advice = array._mmap, getattr(mmap, "MADV_WILLNEED", None)  # type: ignore[attr-defined]
    if mapping is None or advice is None or index.dtype.kind not in "iu" or index.ndim != 1:
        return 0
    if not array.flags.c_contiguous:
        return 0
    size = array.strides[0]
    first = array.ctypes.data - _address(mapping)
    starts = np.where(index < 0, index + len(array), index).astype(np.int64) * size + first
    pages = starts - starts % mmap.PAGESIZE
    for page, length in zip(pages.tolist(), (starts - pages + size).tolist(), strict=True):
        if page >= 0 and page + length <= len(mapping):  # others are named by who reads them
            mapping.madvise(advice, page, length)
    return len(index)


def _address(mapping: Any) -> int:
    view: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8, count=1)
    return int(view.ctypes.data)
