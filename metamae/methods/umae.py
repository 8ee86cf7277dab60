"""U-MAE: the masked autoencoder with a uniformity term."""

from __future__ import annotations

from metalearn import uniformity
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.masking import Split


class UMAE(MAE):
    r"""Masked autoencoder whose pooled latents are pushed apart (U-MAE, Zhang et al. 2022).

    .. math:: L = \frac{1}{B} \sum_b L_{query}(z_b) + \lambda\, L_{uniformity}(\mathrm{mean}(z))

    A masked autoencoder alone uses few dimensions of its latent; this term, without any second
    view, is the control that a method with a contrast has to beat.

    Args:
        network: The masked autoencoder.
        weight: :math:`\lambda`; 0.01 as published.
    """

    def __init__(self, network: MaskedAutoencoder, *, weight: float = 0.01) -> None:
        """See the class."""
        super().__init__(network)
        self.weight = weight

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(split.support_idx))
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))  # (B, 1 + S, D)
        query = self.network.query_loss(latent, targets, split).mean()
        apart = uniformity(latent[:, 1:].mean(1))  # pooled without the class token
        terms = {"query": query.detach(), "uniformity": apart.detach()}
        return PretextLoss(query + self.weight * apart, terms)
