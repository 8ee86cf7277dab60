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
from metamae.model.views import RandomQuantization, ViewedSplit


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
        return cls(**first.shared(), second=second)

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
        view: What makes the second view in place of a second mask: the tokens that the first mask
            leaves visible, of the changed example, from which the same masked tokens of the
            unchanged one are predicted.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        contrast: TaskContrastiveLoss | None,
        *,
        contrast_weight: float = 1.0,
        view: RandomQuantization | None = None,
    ) -> None:
        """See the class."""
        super().__init__(network)
        self.contrast, self.contrast_weight, self.view = contrast, contrast_weight, view

    def draw(self, batch_size: int, generator: torch.Generator) -> PairedSplit | ViewedSplit:
        """Two splits of every example; one, and what is random about the second view."""
        masking = self.network.masking
        if self.view is not None:
            split = masking.draw(batch_size, generator)
            return ViewedSplit.of(split, self.view.draw(batch_size, generator))
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
        network, targets = self.network, self.network.targets(batch)
        if self.view is None:
            assert isinstance(split, PairedSplit)
            views: tuple[tuple[Batch, Split], ...] = ((batch, split), (batch, split.second))
        else:
            assert isinstance(split, ViewedSplit)
            views = ((batch, split), (self.view(batch, split.noise), split))
        latents = [network.encode(network.visible_tokens(*view)) for view in views]
        losses = [
            network.query_loss(latent, targets, masks).mean()
            for latent, (_, masks) in zip(latents, views, strict=True)
        ]
        query = torch.stack(losses).mean()
        terms = {"query": query.detach()}
        if self.contrast is None:
            return Parts(query, terms)
        outputs = [network.output_of(latent) for latent in latents]
        return Parts(query, terms, tuple(self.contrast.pool(output) for output in outputs))

    def joint(self, rows: Sequence[Tensor], split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted contrast of both pooled latents."""
        assert self.contrast is not None
        contrast = self.contrast.compare(*rows)
        return self.contrast_weight * contrast, {"contrast": contrast.detach()}

    def joint_parameters(self) -> list[nn.Parameter]:
        """Those of the projector."""
        return [] if self.contrast is None else list(self.contrast.parameters())
