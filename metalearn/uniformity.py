"""Uniformity: rows pushed apart on the sphere, without positive pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.contrast import directions
from metalearn.norms import at_least_float32


def uniformity(rows: Tensor) -> Tensor:
    r"""Mean square cosine similarity of different rows ``(B, D)``, a scalar (Zhang et al. 2022).

    .. math:: \frac{1}{B (B - 1)} \sum_{i \ne j} \left(\frac{x_i^\top x_j}{|x_i| |x_j|}\right)^2

    It is 1 where all rows lie on a line, and at least ``(B - D) / (D (B - 1))``.

    Raises:
        ValueError: rows of another shape, or fewer than two.

    Example:
        >>> import torch
        >>> from metalearn import uniformity
        >>> uniformity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))  # one pair of three
        tensor(0.3333)
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"expected rows (B, D) with B >= 2 to push apart, got {tuple(rows.shape)}; pool a "
            "latent first, and use a batch of two or more"
        )
    with torch.autocast(device_type=rows.device.type, enabled=False):
        unit = directions(at_least_float32(rows))
        squares = (unit @ unit.T).square()
        count = len(rows)
        return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))
