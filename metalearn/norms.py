"""Norms per task that neither overflow nor vanish, in float32 at least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.pytrees import flat_tasks


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.float()


def task_norm(leaves: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all leaves of each task, ``(B,)``, in float32 at least.

    Example:
        >>> import torch
        >>> from metalearn.norms import task_norm
        >>> task_norm([torch.tensor([[3e30, 4e30], [0.0, 0.0]])])
        tensor([5.0000e+30, 0.0000e+00])
    """
    size, norm = scaled_norm(leaves, floor=0.0)
    return size * norm


def scaled_norm(leaves: Sequence[Tensor], *, floor: float | None = None) -> tuple[Tensor, Tensor]:
    r"""The norm of each task in two factors, :math:`\lVert g_b \rVert = m_b\, n_b`, ``(B,)`` each.

    Squares leave the range of a dtype long before norms do. So a task is first divided by the size
    of its elements, :math:`m_b`, a constant on which neither the value of the norm nor its
    derivatives depend; :math:`n_b = \lVert g_b / m_b \rVert` is of order one.

    Args:
        leaves: Shape ``(B, ...)`` each.
        floor: Least :math:`n_b^2`, at which it has no derivative: that of a task of zeros is NaN
            otherwise. The smallest positive number by default.
    """
    whole = torch.cat([at_least_float32(flat_tasks(leaf)) for leaf in leaves], dim=1)
    numbers = torch.finfo(whole.dtype)
    # The sum, which is the largest element up to their number, is there for no elements too.
    size = whole.detach().abs().sum(1).clamp(max=numbers.max)
    size = torch.where(size > 0, size, 1.0)
    squares = (whole / size.unsqueeze(1)).square().sum(1)
    return size, squares.clamp(min=numbers.tiny if floor is None else floor).sqrt()


def per_task(values: Tensor, leaf: Tensor) -> Tensor:
    """Reshape ``(B,)`` so that it broadcasts against a leaf ``(B, ...)``."""
    return values.to(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
