"""Targets of a teacher: states of the unmasked example in an average of the encoder over time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.config.sections import TargetConfig
from metamae.inputs import Batch
from metamae.model.backbone import Backbone


class Teacher(nn.Module):
    r"""A moving average of tokenizer and encoder (data2vec 2.0, Baevski et al. 2023; I-JEPA).

    .. math::
        \bar\theta \leftarrow \tau \bar\theta + (1 - \tau) \theta, \qquad
        y = \mathrm{LN}\Big(\frac{1}{K} \sum_{k > N - K} \mathrm{LN}(h_k)\Big)

    with :math:`h_k` the states of a token after block :math:`k` of :math:`N`, nothing masked, and a
    layer norm without weights. A prediction that knows nothing has a squared error of 1. No
    gradient flows into it, and dropout has no part in it.

    Args:
        backbone: Tokenizer and encoder, which are copied.
        blocks: :math:`K`, all blocks where there are fewer.
        decay: :math:`\tau`.

    Shape:
        ``forward(batch)`` has per input ``(B, L_i, D)``.
    """

    def __init__(self, backbone: Backbone, *, blocks: int, decay: float) -> None:
        """See the class."""
        super().__init__()
        self.backbone = copy.deepcopy(backbone.bare()).requires_grad_(False).eval()
        self.blocks, self.decay = blocks, decay

    def train(self, mode: bool = True) -> Teacher:
        """It stays in eval mode: its states are targets."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Targets of every token."""
        encoder, tokens = self.backbone.encoder, self.backbone.tokenizer(batch)  # (B, L, D)
        x = torch.cat([encoder.class_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
        first, total = max(0, len(encoder.blocks) - self.blocks), torch.zeros_like(tokens)
        for number, block in enumerate(encoder.blocks):
            x = block(x)
            if number >= first:
                total = total + _normed(x[:, 1:])
        states = _normed(total / (len(encoder.blocks) - first))
        inputs = self.backbone.inputs
        parts = states.split([spec.tokens for spec in inputs], dim=1)
        return {spec.name: part for spec, part in zip(inputs, parts, strict=True)}

    @torch.no_grad()
    def follow(self, network: Backbone) -> None:
        """Move the average towards the weights that were just updated."""
        pairs = zip(self.backbone.parameters(), network.bare().parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs, 1 - self.decay)


def _normed(states: Tensor) -> Tensor:
    return F.layer_norm(states, states.shape[-1:])


def effective_rank(rows: Tensor) -> float:
    r"""In how many directions rows ``(N, D)`` vary about their mean: :math:`e^{H(p)}`.

    :math:`H` is the entropy of the singular values divided by their sum (Roy & Vetterli 2007). Near
    1 all rows lie on a line: features have collapsed. Equal rows have 0.

    Example:
        >>> import torch
        >>> from metamae.model.teacher import effective_rank
        >>> round(effective_rank(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 3)
        2.0
    """
    sizes = torch.linalg.svdvals((rows - rows.mean(0)).double())
    if not sizes.sum() > 0:
        return 0.0
    shares = sizes / sizes.sum()
    return float(torch.special.entr(shares).sum().exp())


def values_target(config: TargetConfig, network: Backbone) -> None:
    """The values or symbols of the masked tokens, as in the paper."""


def teacher_target(config: TargetConfig, network: Backbone) -> Teacher:
    """States of an average of the encoder over time, nothing masked (data2vec 2.0, I-JEPA)."""
    return Teacher(network, blocks=config.blocks, decay=config.decay)


TARGETS: Mapping[str, Callable[[TargetConfig, Backbone], Teacher | None]] = MappingProxyType(
    {"values": values_target, "teacher": teacher_target}
)
"""What makes each, by the name that ``target.kind`` uses."""
