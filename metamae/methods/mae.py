"""The masked autoencoder with a deep decoder (Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from metamae.inputs import Batch
from metamae.methods.method import Method, PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.mask_rules.rule import OpenSplit
from metamae.model.masking import Split
from metamae.model.teacher import effective_rank


class MAE(Method[Split]):
    r"""Masked autoencoder with a deep decoder (paper, section 2.1, Eq. 1).

    .. math:: L = \frac{1}{B} \sum_b L_{query}(e(S_b))

    Args:
        network: The masked autoencoder.
    """

    mean_of_examples = True
    network: MaskedAutoencoder

    def __init__(self, network: MaskedAutoencoder) -> None:
        """See the class."""
        super().__init__(network)

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A support/query split for every example, at random whatever the mask rule."""
        return self.network.masking.draw(batch_size, generator)

    def draw_at(self, batch_size: int, generator: torch.Generator, progress: float) -> Split:
        """What the mask rule draws for a step."""
        rule = self.network.rule
        if rule is None:
            return self.draw(batch_size, generator)
        return rule.draw(self.network.masking, batch_size, generator, progress)

    def complete(self, batch: Batch, split: Split) -> Split:
        """The split that the mask rule makes of these examples."""
        rule = self.network.rule
        if rule is None or not isinstance(split, OpenSplit):
            return split
        self.check(batch, len(split.support_idx))
        return rule.complete(self.network, self.network.masking, batch, split)

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch, Eq. 1."""
        self.check(batch, len(split.support_idx))
        targets = self.network.targets(batch)  # per input (B, L_i, values) or (B, L_i)
        support = self.network.visible_tokens(batch, split)  # (B, S, D)
        latent = self.network.encode(support)  # (B, 1 + S, D)
        query = self.network.query_loss(latent, targets, split).mean()  # (B,) -> ()
        return PretextLoss(query, {"query": query.detach()})

    def after_step(self) -> None:
        """A teacher follows."""
        if self.network.teacher is not None:
            self.network.teacher.follow(self.network)

    @torch.no_grad()
    def monitor(self, batch: Batch, split: Split) -> dict[str, float]:
        """Numbers of what is switched on.

        Under a teacher ``effective_rank`` of the examples' features; those of a mask rule.
        """
        rule, numbers = self.network.rule, dict[str, float]()
        if self.network.teacher is not None:
            numbers["effective_rank"] = effective_rank(self.features(batch))
        if rule is not None:
            numbers |= rule.numbers(split, lambda: self._token_losses(batch, split))
        return numbers

    def _token_losses(self, batch: Batch, split: Split) -> list[Tensor]:
        targets = self.network.targets(batch)
        return self.network.query_token_losses(self.latents(batch, split)[1], targets, split)

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised latent ``(B, 1 + S, D)``, both times: there is no refinement."""
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        return latent, latent


class Untrained(MAE):
    """The encoder with its initial weights: what pretraining has to beat."""
