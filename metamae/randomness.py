"""Random draws as pure functions of (seed, stream, index): resuming needs no replay."""

from __future__ import annotations

import torch

from metalearn.randomness import fold, seeded

__all__ = ["fold", "generator", "seeded"]


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one draw; CPU, so that CUDA runs see the same masks and order.

    Example:
        >>> import torch
        >>> from metamae.randomness import generator
        >>> first, again = (torch.rand(2, generator=generator(0, "masks", 3)) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator().manual_seed(fold(seed, stream, index))
