"""How the C library hands memory back: not at all, while a program trains."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc ignores more


def keep_freed_memory() -> bool:
    """Let glibc keep what a training step frees, for the next step to use.

    By default it returns large blocks to the system at once, and the system clears every page of
    them when they are asked for again, which takes up to a tenth of a step's processor time. The
    process then stays at its peak size. The commands and the demo call this; a library should not,
    so importing ``metamae`` does not. ``docs/measurements.md`` has the figures.

    Returns:
        Whether it took effect; elsewhere than on Linux with glibc nothing is done.

    Example:
        >>> from metamae.training.allocator import keep_freed_memory
        >>> keep_freed_memory() in (True, False)
        True
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: 256 * 2**20,
    }
    return all([bool(mallopt(key, value)) for key, value in settings.items()])
