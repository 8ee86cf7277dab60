"""The network as its equations read, without any shortcut: the oracle of every fast path."""

from __future__ import annotations

import torch
from torch import Tensor

from metamae.autoencoder import MaskedAutoencoder
from metamae.decoder import Decoder
from metamae.masking import Split
from metamae.tokenizer import select
from metamae.transformer import Attention


class StraightDecoder(Decoder):
    """Every block decodes every token; what is asked for is taken from the result."""

    def forward(
        self, latent: Tensor, split: Split, rows: Tensor | slice, *, twice: bool = False
    ) -> Tensor:
        latent = self.embed(latent)
        places = self.places(latent.dtype)
        support = latent[:, 1:] + places[split.support_idx]
        query = self.mask_token.to(latent.dtype) + places[split.query_idx]
        hidden = torch.cat([latent[:, :1], support, query], dim=1)
        for block in self.blocks:
            hidden = block(hidden, twice=twice)
        return select(self.norm(hidden), rows)


def straighten(network: MaskedAutoencoder) -> None:
    """As the equations read: all tokens embedded and decoded, plain attention everywhere."""
    if isinstance(network.decoder, Decoder):
        network.decoder.__class__ = StraightDecoder
    for module in network.modules():
        if isinstance(module, Attention):
            module.fused = False
    tokenizer = network.tokenizer
    network.visible_tokens = lambda batch, split: select(tokenizer(batch), split.support_idx)  # type: ignore[method-assign]
