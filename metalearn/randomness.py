"""Random draws as pure functions of (seed, stream, index): resuming needs no replay."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def fold(seed: int, stream: str, index: int = 0) -> int:
    """A 63-bit seed for draw number ``index`` of a named stream, equal on every machine.

    Example:
        >>> from metalearn.randomness import fold
        >>> fold(0, "masks", 1) == fold(0, "masks", 1), fold(0, "masks", 1) == fold(0, "order", 1)
        (True, False)
    """
    entropy = (seed, zlib.crc32(stream.encode()), index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators inside the block, and restore them after it.

    Args:
        seed: The seed.
        device: A CUDA device whose generator is seeded and restored too.

    Example:
        >>> import torch
        >>> from metalearn.randomness import seeded
        >>> with seeded(0):
        ...     first = torch.rand(2)
        >>> with seeded(0):
        ...     torch.equal(first, torch.rand(2))
        True
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also seed the devices that are not restored.
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
