"""Random draws as pure functions of (seed, stream, index): resuming needs no replay."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def fold(seed: int, stream: str, index: int = 0) -> int:
    """A 63-bit seed for draw number ``index`` of a named stream, equal on every machine.

    Example:
        >>> from metamae.randomness import fold
        >>> fold(0, "masks", 1) == fold(0, "masks", 1), fold(0, "masks", 1) == fold(0, "order", 1)
        (True, False)
    """
    entropy = (seed, zlib.crc32(stream.encode()), index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one draw; CPU, so that CUDA runs see the same masks and order."""
    return torch.Generator().manual_seed(fold(seed, stream, index))
