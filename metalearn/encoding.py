"""Amortised support encoding: one pass from a support set to a latent.

A support encoder maps the support set of every task in a batch to that task's latent,
``z = encoder(S)``. Anything callable in this way will do (:class:`SupportEncoder`); the encoder
of a masked autoencoder is one, :class:`SetEncoder` is another.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metalearn.pytrees import Latent


@runtime_checkable
class SupportEncoder(Protocol):
    """A callable from a batch of support sets to a latent whose leaves have shape ``(B, ...)``.

    Task ``b`` of the latent may depend on task ``b`` of the support alone.
    """

    def __call__(self, support: Any, /) -> Latent:
        """Encode a batch of support sets."""
        ...


class SetEncoder(nn.Module):
    r"""Permutation-invariant encoder of sets with a varying number of elements.

    .. math:: z_b = \rho\Big(\frac{1}{|S_b|} \sum_{s \in S_b} \phi(x_{bs})\Big)

    with two perceptrons :math:`\phi` and :math:`\rho` ("Deep Sets", Zaheer et al. 2017; the
    mean-pooled encoder of conditional neural processes, Garnelo et al. 2018).

    Args:
        features: Size of one set element.
        width: Size of the latent.
        hidden: Width of the hidden layer of both perceptrons; ``width`` when not given.

    Shape:
        ``support`` is ``(B, S, features)``; ``present``, if given, is a boolean ``(B, S)`` which
        is false where a slot holds no element; the result is ``(B, width)``. A task without any
        element gets :math:`\rho(0)`.

    Raises:
        ValueError: on any other shape or on a mask that is not boolean.

    Example:
        >>> import torch
        >>> from metalearn import SetEncoder
        >>> encoder = SetEncoder(features=3, width=8)
        >>> support = torch.randn(2, 5, 3)
        >>> encoder(support).shape
        torch.Size([2, 8])
        >>> torch.allclose(encoder(support), encoder(support.flip(1)), atol=1e-6)
        True
    """

    def __init__(self, features: int, width: int, hidden: int | None = None) -> None:
        """See the class."""
        super().__init__()
        hidden = width if hidden is None else hidden
        self.features = features
        self.element = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, support: Tensor, present: Tensor | None = None) -> Tensor:
        """Encode ``support`` (B, S, features) to a latent (B, width)."""
        if support.ndim != 3 or support.shape[-1] != self.features:
            raise ValueError(
                f"expected support of shape (B, S, {self.features}), got {tuple(support.shape)}"
            )
        if present is None:
            present = support.new_ones(support.shape[:2], dtype=torch.bool)
        if present.dtype != torch.bool or present.shape != support.shape[:2]:
            raise ValueError(
                f"expected a boolean mask of shape {tuple(support.shape[:2])}, "
                f"got {present.dtype} of shape {tuple(present.shape)}"
            )
        # Emptied before and after: a NaN in an empty slot must reach neither value nor gradient.
        present = present.unsqueeze(-1)
        elements = self.element(torch.where(present, support, 0.0))
        elements = torch.where(present, elements, 0.0)
        count = present.sum(dim=1).clamp(min=1)
        return self._read(elements.sum(dim=1) / count)

    def _read(self, mean: Tensor) -> Tensor:
        latent: Tensor = self.readout(mean)
        return latent
