"""The network as its equations read, without any shortcut: the oracle of every fast path."""

from __future__ import annotations

import torch
from torch import Tensor

from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.decoder import Decoder
from metamae.model.masking import Split
from metamae.model.tokenizer import select
from metamae.model.transformer import Attention


class StraightDecoder(Decoder):
    """Every block decodes every token; what is asked for is taken from the result."""

    def forward(
        self, latent: Tensor, split: Split, rows: Tensor | slice, *, second_order: bool = False
    ) -> Tensor:
        latent = self.embed(latent)
        places = self.places(latent.dtype)
        support = latent[:, 1:] + places[split.support_idx]
        query = self.mask_token.to(latent.dtype) + places[split.query_idx]
        hidden = torch.cat([latent[:, :1], support, query], dim=1)
        for block in self.blocks:
            hidden = block(hidden, second_order=second_order)
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
