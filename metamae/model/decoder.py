"""Decoders: a latent and a split become hidden states of the tokens that a loss reads.

Both decoders compute only the tokens asked for where that is exact. ``rows`` counts tokens in the
order [class, support, query]: a slice, or indices ``(B, N)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.config.sections import DecoderConfig
from metamae.inputs import Inputs
from metamae.model.block_mix import BlockMix
from metamae.model.masking import Split
from metamae.model.tokenizer import select, sincos_positions, xavier_linear
from metamae.model.transformer import Block, CrossBlock


class _Decoder(nn.Module):
    """What decoders share: the embedding of latents, the mask token, positions, the last norm."""

    positions: Tensor
    input_number: Tensor

    def __init__(self, config: DecoderConfig, inputs: Inputs, latent_width: int) -> None:
        super().__init__()
        self.embed = xavier_linear(latent_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        nn.init.normal_(self.mask_token, std=0.02)
        tables = [sincos_positions(spec.grid, config.width) for spec in inputs]
        self.register_buffer("positions", torch.cat(tables), persistent=False)
        numbers = [torch.full((spec.tokens,), n) for n, spec in enumerate(inputs)]
        self.register_buffer("input_number", torch.cat(numbers), persistent=False)
        self.type_vectors = (
            nn.Parameter(torch.empty(len(inputs), config.width)) if len(inputs) > 1 else None
        )
        if self.type_vectors is not None:
            nn.init.normal_(self.type_vectors, std=0.02)
        self.norm = nn.LayerNorm(config.width)

    def places(self, dtype: torch.dtype) -> Tensor:
        """What every token position adds, ``(L, d)``: its place, and the type of its input."""
        if self.type_vectors is None:
            return self.positions.to(dtype)
        return (self.positions + self.type_vectors[self.input_number]).to(dtype)


class Decoder(_Decoder):
    """Self-attention over latents and mask tokens (the paper's decoder).

    The latents of visible tokens and one shared mask token per masked position, all with their
    positions, pass through the blocks. Attention does not care about order, so tokens
    stay in the order [class, support, query] and nothing is shuffled back. A mask token enters the
    first block the same in every example, so its norm and projections are computed once per
    position. The last block computes the tokens at ``rows`` alone. Both are exact, and a good part
    of the work.

    Shape:
        latent ``(B, 1 + S, D)``; result ``(B, N, d)`` with ``d`` the decoder's width.
    """

    def __init__(self, config: DecoderConfig, inputs: Inputs, latent_width: int) -> None:
        """See the class."""
        super().__init__(config, inputs, latent_width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )

    def forward(
        self, latent: Tensor, split: Split, rows: Tensor | slice, *, second_order: bool = False
    ) -> Tensor:
        """Decode; ``second_order`` where a second derivative will be taken."""
        latent = self.embed(latent)  # (B, 1 + S, D) -> (B, 1 + S, d)
        places = self.places(latent.dtype)  # (L, d)
        support = latent[:, 1:] + places[split.support_idx]  # (B, S, d)
        seen = torch.cat([latent[:, :1], support], dim=1)  # (B, 1 + S, d)
        masked = self.mask_token[0].to(latent.dtype) + places  # (L, d), the same in every example
        hidden = torch.cat([seen, F.embedding(split.query_idx, masked)], dim=1)  # (B, 1 + L, d)
        if not self.blocks:
            return self._normed(select(hidden, rows))
        first = self.blocks[0]
        assert isinstance(first, Block)
        of_seen, of_masked = (
            first.project(seen),
            F.embedding(split.query_idx, first.project(masked)),
        )
        pairs = zip(of_seen.chunk(3, dim=-1), of_masked.chunk(3, dim=-1), strict=True)
        projected = [torch.cat(pair, dim=1) for pair in pairs]
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            read = rows if number == last else None
            hidden = block(
                hidden, read, projected if number == 0 else None, second_order=second_order
            )
        return self._normed(hidden)

    def _normed(self, hidden: Tensor) -> Tensor:
        decoded: Tensor = self.norm(hidden)
        return decoded


class CrossDecoder(_Decoder):
    """Mask tokens attend to the latents and not to each other (CrossMAE, Fu et al. 2024).

    Every token asked for, visible or masked, starts as the mask token at its position and reads
    from the latents in each block. Nothing else is computed, so refinement decodes the support and
    the nearby tokens only. Another model than :class:`Decoder`, and a cheaper one.

    Under ``mix_blocks`` every block reads another latent (:class:`BlockMix`), of ``states``
    states of the encoder.

    Shape:
        latent ``(B, 1 + S, D)``, or the states side by side; result ``(B, N, d)`` with ``d`` the
        decoder's width.
    """

    def __init__(
        self, config: DecoderConfig, inputs: Inputs, latent_width: int, *, states: int = 1
    ) -> None:
        """See the class."""
        super().__init__(config, inputs, latent_width)
        self.blocks = nn.ModuleList(
            CrossBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.mix = BlockMix(states, config.depth, latent_width) if config.mix_blocks else None

    def forward(
        self, latent: Tensor, split: Split, rows: Tensor | slice, *, second_order: bool = False
    ) -> Tensor:
        """Decode; ``rows`` must not hold the class token."""
        memory = self._memory(latent if self.mix is None else self.mix(latent, 0), split)
        places = self.places(memory.dtype)  # (L, d)
        # The class token's own row comes first and is never asked for.
        order = torch.cat([split.support_idx[:, :1], split.support_idx, split.query_idx], dim=1)
        hidden = self.mask_token.to(memory.dtype) + places[select(order, rows)]  # (B, N, d)
        for number, block in enumerate(self.blocks):
            if self.mix is not None and number > 0:
                memory = self._memory(self.mix(latent, number), split)
            hidden = block(hidden, memory, second_order=second_order)
        decoded: Tensor = self.norm(hidden)
        return decoded

    def _memory(self, latent: Tensor, split: Split) -> Tensor:
        """What a block's tokens attend to."""
        latent = self.embed(latent)  # (B, 1 + S, D) -> (B, 1 + S, d)
        visible = latent[:, 1:] + self.places(latent.dtype)[split.support_idx]  # (B, S, d)
        return torch.cat([latent[:, :1], visible], dim=1)  # (B, 1 + S, d)


def build_decoder(
    config: DecoderConfig, inputs: Inputs, latent_width: int, *, states: int = 1
) -> Decoder | CrossDecoder:
    """The decoder that a configuration describes, of an encoder with so many ``states``."""
    if config.attention == "cross":
        return CrossDecoder(config, inputs, latent_width, states=states)
    return Decoder(config, inputs, latent_width)
