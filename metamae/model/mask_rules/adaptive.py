"""Masks by a learned sampler: tokens that are hard to predict are left visible more often."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metamae.config.sections import EncoderConfig
from metamae.inputs import Batch, Inputs
from metamae.model.backbone import Backbone
from metamae.model.mask_rules.rule import MaskRule, OpenSplit
from metamae.model.masking import Split
from metamae.model.tokenizer import at_least_float32, without_autocast
from metamae.model.transformer import Block


@dataclass(frozen=True)
class SampledSplit(Split):
    """A split, and what the sampler reads.

    Attributes:
        tokens: Embedded tokens of the unmasked examples, ``(B, L, D)``.
    """

    tokens: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, split: Split, tokens: Tensor) -> SampledSplit:
        """A split with tokens."""
        return cls(**split.shared(), tokens=tokens)

    def to(self, device: torch.device | str) -> SampledSplit:
        """The same on another device."""
        return SampledSplit.of(super().to(device), self.tokens.to(device, non_blocking=True))

    def __getitem__(self, examples: slice) -> SampledSplit:
        """Those of some of the examples."""
        return SampledSplit.of(super().__getitem__(examples), self.tokens[examples])


class AdaptiveRule(MaskRule):
    r"""Leave visible what a sampler draws, which learns where losses are (AdaMAE, Bandara 2023).

    A block of attention and a linear map read the embedded tokens :math:`x` of the unmasked
    example; no gradient flows into these. Visible tokens of every input are drawn without
    replacement from

    .. math:: p = \mathrm{softmax}(w \cdot \mathrm{block}(x))

    over its tokens; what is not drawn is masked. The sampler descends, over the masked tokens
    :math:`M` with their losses :math:`\ell` as constants,

    .. math:: L_s = -\frac{1}{|M|} \sum_{j \in M} \log(p_j)\, \ell_j

    the paper's policy gradient by which the expected loss :math:`\sum_j p_j \ell_j` grows: tokens
    with large losses get visible more often. The paper adds :math:`L_s` to the loss with a weight
    of 1e-4; nothing else has a gradient in the sampler, whose norm ``training.clip_norm`` bounds
    apart from that of other weights, and the steps of Adam do not depend on the gradient's size.
    :math:`w` starts at 0, where masks are random.

    Without replacement, the drawn tokens are those with the largest
    :math:`\log p_j - \log(-\log u_j)` for uniform :math:`u` (Gumbel top-k).

    Args:
        inputs: Specifications of the inputs.
        encoder: Gives the width, heads and MLP of the sampler's block.
        share: See :class:`~metamae.model.mask_rules.rule.MaskRule`.
    """

    shares = (1.0, 1.0)

    def __init__(self, inputs: Inputs, encoder: EncoderConfig, share: Sequence[float] = ()) -> None:
        """See the class."""
        super().__init__(share)
        self.sizes = [spec.tokens for spec in inputs]
        self.block = Block(encoder.width, encoder.heads, encoder.mlp_ratio)
        self.logit = nn.Linear(encoder.width, 1, bias=False)  # a bias would change no share
        nn.init.zeros_(self.logit.weight)
        self._tokens: Tensor | None = None

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        r"""Of embedded tokens ``(B, L, D)``: :math:`\log p`, ``(B, L)``, each input's sum 1."""
        with without_autocast(tokens):
            logits = self.logit(self.block(at_least_float32(tokens))).squeeze(-1)  # (B, L)
        return torch.cat([part.log_softmax(dim=1) for part in logits.split(self.sizes, 1)], dim=1)

    def scores(self, network: Backbone, batch: Batch, split: OpenSplit) -> Tensor:
        """The draw's numbers ``(B, L)`` with their sign turned: the largest are visible."""
        self._tokens = network.tokenizer(batch).detach()  # (B, L, D)
        return -perturbed(self.log_probabilities(self._tokens), split.noise)

    def finish(self, split: Split) -> SampledSplit:
        """Keep the tokens."""
        tokens, self._tokens = self._tokens, None
        assert tokens is not None
        return SampledSplit.of(split, tokens)

    def token_loss(self, losses: Sequence[Tensor], split: Split) -> Tensor | None:
        """The sampler's loss, mean over inputs, ``(B,)``; ``None`` of a split without tokens."""
        if not isinstance(split, SampledSplit):
            return None
        index = split.query_idx
        if split.scored is not None:
            index = index.gather(1, split.scored)
        logs = self.log_probabilities(split.tokens).gather(1, index)  # (B, P)
        parts = zip(logs.split([loss.shape[1] for loss in losses], dim=1), losses, strict=True)
        return torch.stack([sampling_loss(log, loss) for log, loss in parts]).mean(0)

    @torch.no_grad()
    def numbers(self, split: Split, losses: Callable[[], Sequence[Tensor]]) -> Mapping[str, float]:
        """``mask_entropy``: that of :math:`p`, mean over inputs, 1 where all tokens are alike."""
        if not isinstance(split, SampledSplit):
            return {}
        parts = self.log_probabilities(split.tokens).split(self.sizes, dim=1)
        shares = [float(-(log.exp() * log).sum(1).mean()) / math.log(log.shape[1]) for log in parts]
        return {"mask_entropy": sum(shares) / len(shares)}


def perturbed(log_probabilities: Tensor, noise: Tensor) -> Tensor:
    """Numbers of which the largest are a draw without replacement (Gumbel top-k).

    Args:
        log_probabilities: Of what is drawn.
        noise: Uniform numbers in [0, 1), of the same shape.

    Example:
        >>> import torch
        >>> from metamae.model.mask_rules.adaptive import perturbed
        >>> perturbed(torch.tensor([0.7, 0.3]).log(), torch.tensor([0.5, 0.9]))
        tensor([0.0098, 1.0464])
    """
    return log_probabilities - torch.log(-torch.log(noise))


def sampling_loss(log_probabilities: Tensor, losses: Tensor) -> Tensor:
    """The sampler's loss ``(B,)`` of masked tokens of one input, both ``(B, P)``.

    Example:
        >>> import torch
        >>> from metamae.model.mask_rules.adaptive import sampling_loss
        >>> sampling_loss(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[1.0, 0.0]]))
        tensor([0.3466])
    """
    return -(log_probabilities * losses.detach()).mean(dim=1)
