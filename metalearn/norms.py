"""Norms per task that neither overflow nor vanish, in float32 at least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.pytrees import flat_tasks


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.float()


def task_norm(leaves: Sequence[Tensor], *, floor: bool = False) -> Tensor:
    r"""Euclidean norm over all leaves of each task, ``(B,)``, in float32 at least.

    Squares leave the range of a dtype long before norms do, so each task is first divided by the
    size of its elements, :math:`m_b`: neither value nor derivatives of
    :math:`m_b \lVert g_b / m_b \rVert` depend on it.

    Args:
        leaves: Shape ``(B, ...)`` each.
        floor: Give a task of zeros the smallest positive norm, with a derivative of zero; without
            it the norm is 0 and its derivative NaN.

    Example:
        >>> import torch
        >>> from metalearn.norms import task_norm
        >>> task_norm([torch.tensor([[3e30, 4e30], [0.0, 0.0]])])
        tensor([5.0000e+30, 0.0000e+00])
    """
    whole = torch.cat([at_least_float32(flat_tasks(leaf)) for leaf in leaves], dim=1)
    range_ = torch.finfo(whole.dtype)
    # The sum, which is the largest element up to their number, is there for no elements too.
    peak = whole.detach().abs().sum(1).clamp(max=range_.max)
    peak = torch.where(peak > 0, peak, 1.0)
    squares = (whole / peak.unsqueeze(1)).square().sum(1)
    if floor:
        squares = squares.clamp(min=range_.tiny)
    return peak * squares.sqrt()
