"""Isotropy: rows that look like a standard normal distribution from every direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.norms import at_least_float32

REACH, POINTS = 5.0, 17
"""The integral goes from -5 to 5, by the trapezoidal rule with as many points: LeJEPA's. It is off
by less than a hundredth where samples lie between -4 and 4."""


def epps_pulley(samples: Tensor) -> Tensor:
    r"""How far samples ``(B, M)`` are from a standard normal distribution, column by column.

    .. math::
        T = B \int \left|\frac{1}{B} \sum_b e^{i t x_b} - e^{-t^2/2}\right|^2 e^{-t^2/2} \, dt

    (Epps and Pulley 1983): the squared distance of characteristic functions. Returns ``(M,)``; its
    mean is :math:`\sqrt{2\pi} - \sqrt{2\pi/3} = 1.06` for normal samples, however many, and it
    grows with ``B`` for others.

    Raises:
        ValueError: samples of another shape, or none.

    Example:
        >>> import torch
        >>> from metalearn.isotropy import epps_pulley
        >>> epps_pulley(torch.zeros(4, 1))  # constant: 4 (sqrt(2 pi) - 2 sqrt(pi) + sqrt(2 pi / 3))
        tensor([1.6357])
    """
    if samples.ndim != 2 or 0 in samples.shape:
        raise ValueError(f"expected samples (B, M), one or more, got {tuple(samples.shape)}")
    with torch.autocast(device_type=samples.device.type, enabled=False):
        samples = at_least_float32(samples)
        # Both functions at -t are the conjugates of those at t: half of the range tells all.
        half = POINTS // 2
        t = torch.linspace(0, REACH, half + 1, dtype=samples.dtype, device=samples.device)
        normal = torch.exp(-t.square() / 2)
        angles = samples.unsqueeze(-1) * t  # (B, M, T)
        real, imaginary = angles.cos().mean(0) - normal, angles.sin().mean(0)
        return 2 * len(samples) * torch.trapezoid((real**2 + imaginary**2) * normal, t, dim=-1)


class Isotropy(nn.Module):
    r"""Equal views whose rows are spread as a standard normal distribution (LeJEPA).

    .. math:: \frac{1}{BD} \sum_b |x_b - x'_b|^2 + \frac{w}{M}\sum_m \frac{T(X a_m) + T(X' a_m)}{2B}

    with unit vectors :math:`a_m` and :func:`epps_pulley` :math:`T`, divided by the number of rows
    so that its weight does not depend on the batch (Balestriero and LeCun 2025, "SIGReg"). LeJEPA
    draws directions anew every step; here they are drawn once, from torch's generator, so that a
    run resumes to the same bits and every process of several measures the same. Under several
    processes pass the joint batch (:func:`metalearn.gather_rows`).

    Args:
        width: :math:`D`.
        directions: :math:`M`, at least one.
        weight: :math:`w`, not negative.

    Shape:
        both views ``(B, D)``; the result is a scalar.

    Raises:
        ValueError: impossible arguments, views of different shapes or of another width.

    Example:
        >>> import torch
        >>> from metalearn import Isotropy, Projector, TaskContrastiveLoss
        >>> term = Isotropy(width=16, directions=64)
        >>> rows = torch.randn(512, 16)
        >>> bool(term(rows, rows) < 0.1 * term(0 * rows, 0 * rows))  # normal against collapsed
        True
        >>> loss = TaskContrastiveLoss(Projector(8, out=16), term=term)
    """

    directions: Tensor

    def __init__(self, width: int, directions: int = 256, *, weight: float = 1.0) -> None:
        """See the class."""
        super().__init__()
        if min(width, directions) < 1 or not 0 <= weight < math.inf:
            raise ValueError(
                "expected a width and directions of 1 or more and a weight of 0 or more, got "
                f"width={width}, directions={directions}, weight={weight}"
            )
        self.weight = weight
        self.register_buffer("directions", F.normalize(torch.randn(width, directions), dim=0))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Loss of two aligned views."""
        width = len(self.directions)
        if first.shape != second.shape or first.ndim != 2 or first.shape[1] != width:
            raise ValueError(
                f"expected two views of one shape (B, {width}), got {tuple(first.shape)} and "
                f"{tuple(second.shape)}"
            )
        with torch.autocast(device_type=first.device.type, enabled=False):
            first, second = at_least_float32(first), at_least_float32(second)
            apart = F.mse_loss(first, second)
            return apart + self.weight * (self.measure(first) + self.measure(second)) / 2

    def measure(self, rows: Tensor) -> Tensor:
        """Mean over directions of the statistic of ``(B, D)``, divided by ``B``."""
        return epps_pulley(rows @ self.directions.to(rows.dtype)).mean() / len(rows)

    def extra_repr(self) -> str:
        """Show the settings."""
        width, count = self.directions.shape
        return f"width={width}, directions={count}, weight={self.weight}"
