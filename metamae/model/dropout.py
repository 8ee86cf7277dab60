"""Dropout whose masks belong to the examples of a batch, however the batch is divided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_share: tuple[int, slice] | None = None
"""Examples of the whole batch, and which of them are being computed; all where it is ``None``."""


@contextmanager
def sharing(batch_size: int, rows: slice) -> Iterator[None]:
    """Inside, inputs of :class:`Dropout` are the examples ``rows`` of a batch of ``batch_size``.

    Under the same seed they lose what they would lose in the whole batch.

    Example:
        >>> import torch
        >>> from metalearn.randomness import seeded
        >>> from metamae.model.dropout import Dropout, sharing
        >>> dropout, x = Dropout(0.5), torch.ones(4, 3)
        >>> with seeded(0):
        ...     whole = dropout(x)
        >>> with seeded(0), sharing(4, slice(2, 4)):
        ...     torch.equal(dropout(x[2:]), whole[2:])
        True
    """
    global _share
    before, _share = _share, (batch_size, rows)
    try:
        yield
    finally:
        _share = before


class Dropout(nn.Dropout):
    """torch's dropout, the example axis first; of a part of a batch inside :func:`sharing`.

    A part draws the masks of the whole batch and takes its own, so that they do not depend on how
    the batch is divided among processes. On CUDA whole batches draw them in the same way, not by
    torch's fused kernel, whose masks no part could repeat.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop values, in training."""
        if not self.training or self.p == 0 or (_share is None and input.device.type == "cpu"):
            return super().forward(input)
        size, rows = _share or (len(input), slice(None))
        keep = 1 - self.p
        whole = torch.empty(size, *input.shape[1:], dtype=input.dtype, device=input.device)
        return input * whole.bernoulli_(keep)[rows].div_(keep)
