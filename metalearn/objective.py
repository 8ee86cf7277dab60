"""The meta-objective: encode, adapt, predict the query, align."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from metalearn.adaptation import LatentAdapter
from metalearn.checks import SupportLoss
from metalearn.contrast import TaskContrastiveLoss
from metalearn.encoding import SupportEncoder
from metalearn.errors import SupportLossShapeError
from metalearn.pytrees import Latent
from metalearn.result import Adaptation


@dataclass(frozen=True)
class MetaLoss:
    """One evaluation of a meta-objective.

    Attributes:
        loss: ``query + contrast_weight * contrast``, a scalar to call ``backward()`` on.
        query: Mean query loss at the refined latent, a scalar.
        contrast: Contrastive loss, a scalar; ``None`` without a contrast.
        latent: The amortised latent.
        adaptation: The refined latent and the support losses on the way.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, MetaObjective
        >>> objective = MetaObjective(lambda support: support, LatentAdapter(step_size=0.5))
        >>> loss = lambda z: z.square().sum(1)
        >>> result = objective(torch.ones(2, 1), support_loss=loss, query_loss=loss)
        >>> result.loss, result.contrast is None
        (tensor(0., grad_fn=<MeanBackward0>), True)
    """

    loss: Tensor
    query: Tensor
    contrast: Tensor | None
    latent: Latent
    adaptation: Adaptation


class MetaObjective(nn.Module):
    r"""Amortise, refine, predict, align: the objective shared by a family of methods.

    .. math::
        z = e(S), \quad z' = \mathrm{adapt}(z), \quad
        L = \frac{1}{B} \sum_b L_{query}(z'_b) + \lambda\, L_{contrast}(z, z')

    (paper, section 2.2). MetaMAE is one instance: the support is what an encoder sees of a masked
    example. Gradient origin networks are another: the encoder returns zeros, the step size is 1
    and the query loss is the support loss, so :math:`z'` is the negative gradient at the origin.

    Args:
        encoder: Support set to latent; any :class:`~metalearn.encoding.SupportEncoder`.
        adapter: Refines the latent.
        contrast: Aligns the two latents; ``None`` for no contrast.
        contrast_weight: :math:`\lambda`, not negative.

    Raises:
        ValueError: a negative ``contrast_weight``.
        SupportLossShapeError: the query loss is neither ``(B,)`` nor a scalar.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, MetaObjective, SetEncoder
        >>> objective = MetaObjective(SetEncoder(3, 4), LatentAdapter(step_size=0.1))
        >>> decoder = torch.nn.Linear(4, 3)
        >>> support, query = torch.randn(2, 5, 3), torch.randn(2, 3)
        >>> result = objective(
        ...     support,
        ...     support_loss=lambda z: (decoder(z).unsqueeze(1) - support).square().mean((1, 2)),
        ...     query_loss=lambda z: (decoder(z) - query).square().mean(1),
        ... )
        >>> result.loss.backward()
    """

    def __init__(
        self,
        encoder: SupportEncoder | Callable[[Any], Latent],
        adapter: LatentAdapter,
        contrast: TaskContrastiveLoss | None = None,
        *,
        contrast_weight: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__()
        if not contrast_weight >= 0:
            raise ValueError(f"expected contrast_weight >= 0, got {contrast_weight}")
        self.encoder = encoder
        self.adapter = adapter
        self.contrast = contrast
        self.contrast_weight = contrast_weight

    def forward(
        self,
        support: Any,
        *,
        support_loss: SupportLoss,
        query_loss: Callable[[Latent], Tensor],
    ) -> MetaLoss:
        """Evaluate the objective; both losses map a latent to ``(B,)``, or the query to a mean."""
        found = self.predict(support, support_loss=support_loss, query_loss=query_loss)
        if self.contrast is None:
            return found
        contrast = self.contrast(found.latent, found.adaptation.latent)
        loss = found.query + self.contrast_weight * contrast
        return replace(found, loss=loss, contrast=contrast)

    def predict(
        self,
        support: Any,
        *,
        support_loss: SupportLoss,
        query_loss: Callable[[Latent], Tensor],
    ) -> MetaLoss:
        """The objective without its contrast, a mean over tasks that know nothing of each other."""
        latent = self.encoder(support)
        adaptation = self.adapter(latent, support_loss)
        query = self._mean(query_loss(adaptation.latent))
        return MetaLoss(query, query, None, latent, adaptation)

    @staticmethod
    def _mean(losses: Tensor) -> Tensor:
        if losses.ndim > 1:
            raise SupportLossShapeError(
                f"expected a query loss of shape (B,) or a scalar, got {tuple(losses.shape)}; "
                "reduce over every axis but the first, e.g. loss.flatten(1).mean(1)"
            )
        return losses.mean()
