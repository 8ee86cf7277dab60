"""Rows of all ranks as one batch, differentiably: what a joint contrast is taken of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(rows: Tensor, counts: Sequence[int] = (), *, group: Any = None) -> Tensor:
    """The rows of every rank, one rank after the other, ``(sum of counts, ...)``.

    Every rank has to call it, and to compute **the same function** of the result, as of a
    contrastive loss of the joint batch. The gradient of its own rows is then that of the sum of
    these equal losses over the ranks, without further communication: times the number of ranks,
    which ``DistributedDataParallel`` divides by when it averages. So averaged gradients are those
    of one process with the joint batch. They have no second derivative.

    Args:
        rows: This rank's rows ``(b, ...)``; ranks may have different numbers of them.
        counts: How many every rank has, where that is known; asked for otherwise.
        group: The process group; the default one where none is given.

    Returns:
        The rows themselves where ``torch.distributed`` is not initialised or has one rank.

    Raises:
        ValueError: counts that do not fit the ranks or the rows.

    Example:
        >>> import torch
        >>> from metalearn import gather_rows
        >>> gather_rows(torch.ones(2, 3)).shape  # in one process
        torch.Size([2, 3])
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    ranks, rank = distributed.get_world_size(group), distributed.get_rank(group)
    if ranks == 1:
        return rows
    counts = tuple(counts) or _ask(len(rows), ranks, rows.device, group)
    if len(counts) != ranks or counts[rank] != len(rows):
        raise ValueError(
            f"expected the number of rows of each of {ranks} ranks, {len(rows)} of rank {rank}, "
            f"got {counts}"
        )
    gathered: Tensor = _Gather.apply(rows, counts, rank, group)  # type: ignore[no-untyped-call]
    return gathered


def _ask(count: int, ranks: int, device: torch.device, group: Any) -> tuple[int, ...]:
    own = torch.tensor([count], device=device)
    all_of_them = [torch.empty_like(own) for _ in range(ranks)]
    torch.distributed.all_gather(all_of_them, own, group=group)
    return tuple(int(one) for one in all_of_them)


class _Gather(torch.autograd.Function):
    """All rows forward; own rows back, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], rank: int, group: Any) -> Tensor:
        ctx.start, ctx.count, ctx.ranks = sum(counts[:rank]), counts[rank], len(counts)
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))  # collectives want equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient[ctx.start : ctx.start + ctx.count] * ctx.ranks, None, None, None
