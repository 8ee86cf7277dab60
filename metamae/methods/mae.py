"""The masked autoencoder with a deep decoder (Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from metamae.inputs import Batch
from metamae.methods.method import Method, PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.masking import Split


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
        """A support/query split for every example."""
        return self.network.masking.draw(batch_size, generator)

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch, Eq. 1."""
        self.check(batch, len(split.support_idx))
        targets = self.network.tokenizer.targets(batch)  # per input (B, L_i, values) or (B, L_i)
        support = self.network.visible_tokens(batch, split)  # (B, S, D)
        latent = self.network.encode(support)  # (B, 1 + S, D)
        query = self.network.query_loss(latent, targets, split).mean()  # (B,) -> ()
        return PretextLoss(query, {"query": query.detach()})

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised latent ``(B, 1 + S, D)``, both times: there is no refinement."""
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        return latent, latent


class Untrained(MAE):
    """The encoder with its initial weights: what pretraining has to beat."""
