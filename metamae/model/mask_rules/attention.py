"""Masks by the encoder's own attention: what belongs together is masked together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from metamae.inputs import Batch
from metamae.model.backbone import Backbone
from metamae.model.mask_rules.rule import MaskRule, OpenSplit
from metamae.model.transformer import Block


class AttentionRule(MaskRule):
    r"""Mask what a few random tokens attend to most (SMA, Xie et al. 2024).

    .. math:: s_j = \sum_{i \in R} \sum_h \mathrm{softmax}_j(q_{hi} \cdot k_{hj} / \sqrt{d})

    of the encoder's first block over the unmasked example, class token included among the
    :math:`j` that share a row's sum of 1, with :math:`R` drawn anew for every example and step.
    Early in training attention says little: at first all of a mask is drawn, at the end none.

    Args:
        rows: Share of the tokens in :math:`R`, one token at least.
        share: See :class:`~metamae.model.mask_rules.rule.MaskRule`.
    """

    shares = (0.0, 1.0)

    def __init__(self, rows: float = 0.1, share: Sequence[float] = ()) -> None:
        """See the class."""
        super().__init__(share)
        self.rows = rows

    def guides(self, tokens: int) -> int:
        """Rows of the attention map that are summed."""
        return max(1, round(self.rows * tokens))

    def scores(self, network: Backbone, batch: Batch, split: OpenSplit) -> Tensor:
        """Attention that tokens get from the guides, ``(B, L)``."""
        encoder, tokens = network.encoder, network.tokenizer(batch)  # (B, L, D)
        block = encoder.blocks[0]
        assert isinstance(block, Block)
        class_token = encoder.class_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        query, key, _ = block.project(torch.cat([class_token, tokens], dim=1)).chunk(3, dim=-1)
        places = split.guides.unsqueeze(-1).expand(-1, -1, query.shape[-1]) + 1
        query, key = (
            rearrange(x, "b t (h d) -> b h t d", h=block.attention.heads)
            for x in (query.gather(1, places), key)
        )
        maps = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)  # (B, H, R, 1 + L)
        return maps.sum(dim=(1, 2))[:, 1:]
