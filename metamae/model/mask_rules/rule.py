"""The contract of a mask rule: it sees the examples and the network, and says what is masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from metamae.inputs import Batch
from metamae.model.backbone import Backbone
from metamae.model.masking import Masking, Split
from metamae.model.tokenizer import without_autocast


@dataclass(frozen=True)
class OpenSplit(Split):
    """A random split, and the numbers by which a rule makes its own of it.

    Everything random is drawn before the examples are known, on the CPU, so that masks are a
    function of the seed, the step, the example and the weights.

    Attributes:
        keys: Uniform numbers ``(B, L)``: the smaller, the sooner a token is masked at random.
        coins: Uniform numbers ``(B, L)``: below the nearby ratio a masked token beside a visible
            one is drawn as nearby.
        guides: Tokens drawn for the rule, int64 ``(B, R)``.
        noise: Uniform numbers ``(B, L)``, for what else a rule draws; the guides follow from them.
        share: Share of the masked tokens that the rule chooses.
    """

    keys: Tensor = field(kw_only=True)
    coins: Tensor = field(kw_only=True)
    guides: Tensor = field(kw_only=True)
    noise: Tensor = field(kw_only=True)
    share: float = field(kw_only=True)

    def to(self, device: torch.device | str) -> OpenSplit:
        """The same draw on another device."""
        moved = (x.to(device, non_blocking=True) for x in self.drawn())
        return _opened(super().to(device), *moved, share=self.share)

    def __getitem__(self, examples: slice) -> OpenSplit:
        """The draw of some of the examples."""
        chosen = (x[examples] for x in self.drawn())
        return _opened(super().__getitem__(examples), *chosen, share=self.share)

    def drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, coins, guides and noise."""
        return self.keys, self.coins, self.guides, self.noise


def _opened(split: Split, *drawn: Tensor, share: float) -> OpenSplit:
    keys, coins, guides, noise = drawn
    return OpenSplit(
        **split.shared(), keys=keys, coins=coins, guides=guides, noise=noise, share=share
    )


class MaskRule(nn.Module):
    """Base of all rules: tokens with the highest scores are masked, the rest of a mask is drawn.

    Args:
        share: Share of the masked tokens that the rule chooses at the first step and at the last,
            in proportion between; the rule's own where empty.
    """

    shares: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, share: Sequence[float] = ()) -> None:
        """See the class."""
        super().__init__()
        self.share = tuple(share) or self.shares

    def guides(self, tokens: int) -> int:
        """How many tokens of an example are drawn for the rule."""
        return 0

    def scores(self, network: Backbone, batch: Batch, split: OpenSplit) -> Tensor:
        """A number ``(B, L)`` for every token, of an example alone: the highest are masked."""
        raise NotImplementedError

    def finish(self, split: Split) -> Split:
        """The split of :meth:`complete` with what the rule's own loss needs; called after it."""
        return split

    def token_loss(self, losses: Sequence[Tensor], split: Split) -> Tensor | None:
        """A loss ``(B,)`` of the rule's own weights, of the token losses per input ``(B, P_i)``."""
        return None

    def numbers(self, split: Split, losses: Callable[[], Sequence[Tensor]]) -> Mapping[str, float]:
        """Numbers for the log, of a split of :meth:`complete`; ``losses`` computes its losses."""
        return {}

    def draw(
        self, masking: Masking, batch_size: int, generator: torch.Generator, progress: float
    ) -> OpenSplit:
        """A random split and the random numbers of a step, ``progress`` of the way from 0 to 1."""
        split = masking.draw(batch_size, generator)
        tokens = sum(spec.tokens for spec in masking.inputs)
        keys, coins, noise = torch.rand(3, batch_size, tokens, generator=generator)
        guides = noise.argsort(dim=1)[:, : self.guides(tokens)]
        first, last = self.share
        share = first + (last - first) * progress
        return _opened(split, keys, coins, guides, noise, share=share)

    @torch.no_grad()
    def complete(
        self, network: Backbone, masking: Masking, batch: Batch, split: OpenSplit
    ) -> Split:
        """The split of these examples. Each input keeps its own number of visible tokens."""
        mode = network.training
        network.eval()  # no dropout
        try:
            with without_autocast(split.keys):
                scores = self.scores(network, batch, split)
        finally:
            network.train(mode)
        return self.finish(choose(masking, scores, split))


def choose(masking: Masking, scores: Tensor, split: OpenSplit) -> Split:
    """Mask the tokens with the highest scores, in the share of a draw, and draw the others.

    Args:
        masking: Numbers of tokens, and neighbourhoods.
        scores: ``(B, L)``.
        split: The draw.
    """
    counts, sizes = masking.counts_of(split), [spec.tokens for spec in masking.inputs]
    support, query, offset = [], [], 0
    parts = zip(scores.split(sizes, 1), split.keys.split(sizes, 1), counts.query, strict=True)
    for score, key, masked in parts:
        rank = _rank(score, descending=True)
        chosen = rank < round(split.share * masked)  # (B, L_i), as many in every example
        order = (key - 2 * chosen.to(key.dtype)).argsort(dim=1, stable=True) + offset
        query.append(order[:, :masked].sort(dim=1).values)
        support.append(order[:, masked:].sort(dim=1).values)
        offset += score.shape[1]
    support_idx, query_idx = torch.cat(support, 1), torch.cat(query, 1)
    drawn = split.coins.gather(1, query_idx) < masking.nearby_ratio
    nearby = drawn & masking.touches_support(support_idx, query_idx)
    slots = masking.count_slots(nearby, counts.query)
    return Split(support_idx, query_idx, nearby, slots, split.scored, split.visible)


def _rank(values: Tensor, *, descending: bool) -> Tensor:
    """Place of every value in its row's order; of equal ones the first comes first."""
    order = values.argsort(dim=1, descending=descending, stable=True)
    return order.argsort(dim=1)
