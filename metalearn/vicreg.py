"""VICReg: equal views, columns that vary, columns that differ from each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.norms import at_least_float32

SMALL = 1e-4
"""Added to variances under the root, whose derivative at 0 is infinite."""


def variance(rows: Tensor, *, floor: float = 1.0) -> Tensor:
    r"""How far standard deviations of the columns of ``(B, D)`` lie below a floor, a scalar.

    .. math:: v(X) = \frac{1}{D} \sum_j \max(0, \gamma - \sqrt{\mathrm{Var}(x_j) + 10^{-4}})

    with :math:`\gamma` the floor and the unbiased variance (VICReg, Bardes et al. 2022, Eq. 1). It
    is 0 once every column varies enough.

    Raises:
        ValueError: rows of another shape, or fewer than two.

    Example:
        >>> import torch
        >>> from metalearn.vicreg import variance
        >>> variance(torch.tensor([[0.0, 5.0], [0.0, 7.0]]))  # one column is constant
        tensor(0.4950)
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        spread = (_checked(rows).var(dim=0) + SMALL).sqrt()
        return F.relu(floor - spread).mean()


def covariance(rows: Tensor) -> Tensor:
    r"""Squared covariances of different columns of ``(B, D)``, summed, by column: a scalar.

    .. math:: c(X) = \frac{1}{D} \sum_{i \ne j} \mathrm{Cov}(x_i, x_j)^2

    with the unbiased covariance (VICReg, Bardes et al. 2022, Eq. 4).

    Raises:
        ValueError: rows of another shape, or fewer than two.

    Example:
        >>> import torch
        >>> from metalearn.vicreg import covariance
        >>> covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))  # twice 2 squared, by 2 columns
        tensor(4.)
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        rows = _checked(rows)
        centred = rows - rows.mean(dim=0)
        products = centred.T @ centred / (len(rows) - 1)
        squares = products.square()
        return (squares.sum() - squares.diagonal().sum()) / rows.shape[1]


def vicreg(
    first: Tensor,
    second: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    r"""VICReg of two aligned views ``(B, D)``, a scalar (Bardes et al. 2022, Eq. 6).

    .. math::
        \lambda \frac{1}{BD} \sum_b |x_b - x'_b|^2 + \mu \frac{v(X) + v(X')}{2}
            + \nu \left(c(X) + c(X')\right)

    with :func:`variance` :math:`v` and :func:`covariance` :math:`c`. No row is a negative of
    another. The weights 25, 25, 1 are the paper's, for the means over columns that its program
    takes. Under several processes pass the joint batch (:func:`metalearn.gather_rows`): columns
    have to vary over all of it.

    Raises:
        ValueError: views of different shapes, of another shape, or with fewer than two rows.

    Example:
        >>> import torch
        >>> from metalearn import TaskContrastiveLoss, Projector, vicreg
        >>> one = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> vicreg(one, one)  # equal, spread, uncorrelated
        tensor(0.)
        >>> loss = TaskContrastiveLoss(Projector(8), term=vicreg)
    """
    if first.shape != second.shape:
        raise ValueError(
            "expected two views of one shape (B, D), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    with torch.autocast(device_type=first.device.type, enabled=False):
        first, second = _checked(first), _checked(second)
        spread = (variance(first) + variance(second)) / 2
        alike = covariance(first) + covariance(second)
        apart = F.mse_loss(first, second)
        return invariance_weight * apart + variance_weight * spread + covariance_weight * alike


def _checked(rows: Tensor) -> Tensor:
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"expected rows (B, D) with B >= 2, over which columns vary, got {tuple(rows.shape)}; "
            "pool a latent first, and use a batch of two or more"
        )
    return at_least_float32(rows)
