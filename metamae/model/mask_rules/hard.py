"""Masks of what is hard: a small head learns to rank tokens by their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.inputs import Batch
from metamae.model.backbone import Backbone
from metamae.model.mask_rules.rule import MaskRule, OpenSplit
from metamae.model.masking import Split
from metamae.model.tokenizer import select, xavier_linear


@dataclass(frozen=True)
class RankedSplit(Split):
    """A split, and what the head reads of its masked tokens.

    Attributes:
        states: Encoder's states of the masked tokens of unmasked examples, ``(B, Q, D)``.
    """

    states: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, split: Split, states: Tensor) -> RankedSplit:
        """A split with states."""
        return cls(**split.shared(), states=states)

    def to(self, device: torch.device | str) -> RankedSplit:
        """The same on another device."""
        return RankedSplit.of(super().to(device), self.states.to(device, non_blocking=True))

    def __getitem__(self, examples: slice) -> RankedSplit:
        """Those of some of the examples."""
        return RankedSplit.of(super().__getitem__(examples), self.states[examples])


class HardRule(MaskRule):
    r"""Mask tokens whose loss a head expects to be high (hard patches, Wang et al. 2023).

    The head :math:`p` reads the encoder's states of the unmasked example, without a gradient in the
    encoder. It learns the order of losses :math:`\ell`, not their size, from the masked tokens of
    every step, by the pairs of an example with :math:`\ell_i > \ell_j`:

    .. math:: L_{rank} = \mathrm{mean}_{(i, j)} \log(1 + e^{-(p_i - p_j)})

    At first all of a mask is drawn, at the end half of it is what the head ranks highest.

    Args:
        width: Of the encoder.
        share: See :class:`~metamae.model.mask_rules.rule.MaskRule`.
    """

    shares = (0.0, 0.5)

    def __init__(self, width: int, share: Sequence[float] = ()) -> None:
        """See the class."""
        super().__init__(share)
        self.head = nn.Sequential(
            xavier_linear(width, width // 2),
            nn.GELU(),
            xavier_linear(width // 2, 1, bias=False),  # differences alone matter
        )
        self._states: Tensor | None = None

    def scores(self, network: Backbone, batch: Batch, split: OpenSplit) -> Tensor:
        """Expected rank of every token, ``(B, L)``."""
        self._states = network.token_features(batch)  # (B, L, D)
        return self.rank(self._states)

    def rank(self, states: Tensor) -> Tensor:
        """Of states ``(..., D)`` a number ``(...)``: the higher, the harder."""
        ranked: Tensor = self.head(states)
        return ranked.squeeze(-1)

    def finish(self, split: Split) -> RankedSplit:
        """Keep the states of what is masked."""
        states, self._states = self._states, None
        assert states is not None
        return RankedSplit.of(split, select(states, split.query_idx))

    def token_loss(self, losses: Sequence[Tensor], split: Split) -> Tensor | None:
        """The ranking loss, mean over inputs, ``(B,)``; ``None`` of a split that has no states."""
        if not isinstance(split, RankedSplit):
            return None
        pairs = zip(self._ranks(losses, split), losses, strict=True)
        return torch.stack([ranking_loss(ranks, loss) for ranks, loss in pairs]).mean(0)

    def numbers(self, split: Split, losses: Callable[[], Sequence[Tensor]]) -> Mapping[str, float]:
        """``ranked``: the share of pairs that the head orders as their losses."""
        if not isinstance(split, RankedSplit):
            return {}
        return {"ranked": self.agreement(losses(), split)}

    @torch.no_grad()
    def agreement(self, losses: Sequence[Tensor], split: RankedSplit) -> float:
        """Share of the pairs of an example's masked tokens that the head orders as the losses."""
        right, all_pairs = 0.0, 0.0
        for ranks, loss in zip(self._ranks(losses, split), losses, strict=True):
            harder = loss.unsqueeze(2) > loss.unsqueeze(1)
            right += float((harder & (ranks.unsqueeze(2) > ranks.unsqueeze(1))).sum())
            all_pairs += float(harder.sum())
        return right / all_pairs if all_pairs else 0.5

    def _ranks(self, losses: Sequence[Tensor], split: RankedSplit) -> tuple[Tensor, ...]:
        states = split.states if split.scored is None else select(split.states, split.scored)
        return torch.split(self.rank(states), [loss.shape[1] for loss in losses], dim=1)


def ranking_loss(ranks: Tensor, losses: Tensor) -> Tensor:
    """Mean logistic loss ``(B,)`` over the pairs of an example whose losses differ.

    Args:
        ranks: ``(B, P)``, which should be in the order of the losses.
        losses: ``(B, P)``, constants here.

    Example:
        >>> import torch
        >>> from metamae.model.mask_rules.hard import ranking_loss
        >>> ranking_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.1]]))  # log(1 + e^-2)
        tensor([0.1269])
    """
    losses = losses.detach()
    harder = losses.unsqueeze(2) > losses.unsqueeze(1)  # (B, P, P), of i and j
    loss = F.softplus(ranks.unsqueeze(1) - ranks.unsqueeze(2)) * harder
    return loss.sum((1, 2)) / harder.sum((1, 2)).clamp(min=1)
