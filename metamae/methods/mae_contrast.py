"""A masked autoencoder with a contrast of two masks, and without an inner step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn import TaskContrastiveLoss
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import Parts, PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.masking import Split


@dataclass(frozen=True)
class PairedSplit(Split):
    """A split of every example, and a second one drawn independently.

    Attributes:
        second: The second.
    """

    second: Split = field(kw_only=True)

    @classmethod
    def of(cls, first: Split, second: Split) -> PairedSplit:
        """Two splits as one draw, which reads as the first."""
        return cls(
            first.support_idx,
            first.query_idx,
            first.nearby,
            first.slots,
            first.scored,
            first.visible,
            second=second,
        )

    def to(self, device: torch.device | str) -> PairedSplit:
        """The same draw on another device."""
        return PairedSplit.of(super().to(device), self.second.to(device))

    def __getitem__(self, examples: slice) -> PairedSplit:
        """The draw of some of the examples."""
        return PairedSplit.of(super().__getitem__(examples), self.second[examples])


class ContrastiveMAE(MAE):
    r"""Two masks of an example are encoded and decoded; their pooled latents are aligned.

    .. math::
        L = \frac{1}{2B} \sum_b L_{query}(z^1_b) + L_{query}(z^2_b)
            + \lambda\, L_{contrast}(z^1, z^2)

    MetaMAE's contrast with the second view from a second mask in place of refinement: what the
    inner step adds is what MetaMAE is better by.

    Args:
        network: The masked autoencoder.
        contrast: Aligns both latents, pooled over tokens without the class token; or ``None``.
        contrast_weight: :math:`\lambda`.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        contrast: TaskContrastiveLoss | None,
        *,
        contrast_weight: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__(network)
        self.contrast, self.contrast_weight = contrast, contrast_weight

    def draw(self, batch_size: int, generator: torch.Generator) -> PairedSplit:
        """Two splits of every example."""
        masking = self.network.masking
        return PairedSplit.of(
            masking.draw(batch_size, generator), masking.draw(batch_size, generator)
        )

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        parts = self.parts(batch, split)
        if not parts.rows:
            return PretextLoss(parts.own, parts.terms)
        loss, terms = self.joint(parts.rows, split)
        return PretextLoss(parts.own + loss, parts.terms | terms)

    @property
    def is_joint(self) -> bool:
        """With a contrast."""
        return self.contrast is not None

    def parts(self, batch: Batch, split: Split) -> Parts:
        """Query losses, and both pooled latents."""
        self.check(batch, len(split.support_idx))
        assert isinstance(split, PairedSplit)
        network, targets = self.network, self.network.tokenizer.targets(batch)
        views = (split, split.second)
        latents = [network.encode(network.visible_tokens(batch, view)) for view in views]
        losses = [
            network.query_loss(latent, targets, view).mean()
            for latent, view in zip(latents, views, strict=True)
        ]
        query = torch.stack(losses).mean()
        terms = {"query": query.detach()}
        if self.contrast is None:
            return Parts(query, terms)
        return Parts(query, terms, tuple(self.contrast.pool(latent) for latent in latents))

    def joint(self, rows: Sequence[Tensor], split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted contrast of both pooled latents."""
        assert self.contrast is not None
        contrast = self.contrast.compare(*rows)
        return self.contrast_weight * contrast, {"contrast": contrast.detach()}

    def joint_parameters(self) -> list[nn.Parameter]:
        """Those of the projector."""
        return [] if self.contrast is None else list(self.contrast.parameters())
