"""An inner loop over a batch in chunks of tasks: tasks do not know of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from metalearn.pytrees import Latent, Structure, unflatten

ChunkedLoss = Callable[[Latent, slice], Tensor]
"""``support_loss(latent, tasks) -> (b,)``: losses of the tasks ``tasks``, whose latent is given."""


def chunks(
    leaves: Sequence[Tensor], structure: Structure, size: int
) -> Iterator[tuple[Latent, slice]]:
    """The latent of every ``size`` tasks, and which they are.

    Example:
        >>> import torch
        >>> from metalearn.chunks import chunks
        >>> [tasks for _, tasks in chunks([torch.zeros(5, 2)], torch.Tensor, 3)]
        [slice(0, 3, None), slice(3, 5, None)]
    """
    tasks = leaves[0].shape[0]
    for start in range(0, max(tasks, 1), size):
        part = slice(start, min(start + size, tasks))
        yield unflatten([leaf[part] for leaf in leaves], structure), part


def joined(parts: Sequence[Sequence[Tensor]], axis: int = 0) -> list[Tensor]:
    """Tensors of all chunks, one after the other along the task axis."""
    return [torch.cat(same, dim=axis) for same in zip(*parts, strict=True)]
