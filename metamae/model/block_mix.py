"""What a decoder's blocks read: each its own mix of what the encoder's blocks have computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.randomness import fold, seeded


class BlockMix(nn.Module):
    r"""A learned linear mix of the encoder's states for every decoder block (CrossMAE, Fu 2024).

    .. math:: m_i = \mathrm{LN}_i\Big(\sum_{k=0}^{K} w_{ik} h_k\Big)

    with :math:`h_0` the embedded tokens, :math:`h_k` the output of the encoder's block :math:`k`
    of :math:`K`, and :math:`h_K` normed as the encoder's output is, whose norm is thus trained
    here too. :math:`w_{ik}` starts normally distributed with the deviation
    :math:`1 / \sqrt{K + 1}`, as published. Its draw moves no other weight's.

    Args:
        states: :math:`K + 1`.
        blocks: Of the decoder.
        width: Of the encoder.

    Shape:
        Latents are ``(B, 1 + S, (K + 1) D)``, the states side by side; what block ``i`` reads is
        ``(B, 1 + S, D)``.

    Example:
        >>> import torch
        >>> from metamae.model.block_mix import BlockMix
        >>> mix = BlockMix(states=3, blocks=2, width=8)
        >>> mix(torch.zeros(4, 5, 24), 1).shape
        torch.Size([4, 5, 8])
    """

    def __init__(self, states: int, blocks: int, width: int) -> None:
        """See the class."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, states))
        with seeded(fold(torch.initial_seed(), "block mix")):
            nn.init.normal_(self.weight, std=1 / math.sqrt(states))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))

    def forward(self, latent: Tensor, block: int) -> Tensor:
        """What decoder block number ``block`` reads."""
        weight = self.weight[block]
        states = latent.unflatten(-1, (len(weight), -1))  # (B, T, K + 1, D)
        mixed: Tensor = self.norms[block](torch.einsum("btkd,k->btd", states, weight))
        return mixed
