"""U-MAE: the masked autoencoder with a uniformity term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn import uniformity
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import Parts, PretextLoss
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
        masks: Masks of an example in a training step: both terms are means over them, and latents
            are pushed apart from those under the same mask of other examples.
    """

    def __init__(self, network: MaskedAutoencoder, *, weight: float = 0.01, masks: int = 1) -> None:
        """See the class."""
        super().__init__(network, masks=masks)
        self.weight = weight

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        parts = self.parts(batch, split)
        loss, terms = self.joint(parts.rows, split)
        return PretextLoss(parts.own + loss, parts.terms | terms)

    @property
    def is_joint(self) -> bool:
        """Every latent is compared with all others."""
        return True

    def parts(self, batch: Batch, split: Split) -> Parts:
        """Query loss, and pooled latents under every mask."""
        self.check(batch, len(split.support_idx))
        query, latents = self._predict(batch, split)
        outputs = (self.network.output_of(latent) for latent in latents)
        pooled = tuple(output[:, 1:].mean(1) for output in outputs)  # without the class token
        return Parts(query, {"query": query.detach()}, pooled)

    def joint(self, rows: Sequence[Tensor], split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted uniformity of pooled latents."""
        apart = torch.stack([uniformity(pooled) for pooled in rows]).mean()
        return self.weight * apart, {"uniformity": apart.detach()}
