"""Masking: an example's tokens become a support set and a query set of indices.

The visible tokens are the support, the masked ones the query (paper, section 2.1). *Nearby* tokens
are masked tokens that touch a visible one; a random few of them join the support when the latent
is refined (section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metamae.arguments import is_whole
from metamae.errors import ConfigError
from metamae.inputs import Inputs


@dataclass(frozen=True)
class Split:
    """A support/query split of the tokens of ``B`` examples.

    Attributes:
        support_idx: Visible tokens, int64 ``(B, S)``, ascending.
        query_idx: Masked tokens, int64 ``(B, Q)``, ascending.
        nearby: Boolean ``(B, Q)``: which of the masked tokens were drawn as nearby support.
        slots: Per input, at least the largest number of drawn nearby tokens of any example; empty
            if it is to be looked up in ``nearby`` (which waits for the device).
        scored: Which masked tokens the outer loss is taken on, int64 ``(B, P)``: places in
            ``query_idx``, ascending. ``None`` for all of them.
        visible: Visible tokens of every input, where they are not those of the masking rule because
            the ratio was drawn; empty otherwise.

    Every example of a batch has the same ``S`` and ``Q``; with several inputs each input keeps its
    own fixed share of both, in the order of the inputs.
    """

    support_idx: Tensor
    query_idx: Tensor
    nearby: Tensor
    slots: tuple[int, ...] = ()
    scored: Tensor | None = None
    visible: tuple[int, ...] = ()

    def shared(self) -> dict[str, Any]:
        """What every split has, by name: for draws that hold more beside it."""
        return {
            "support_idx": self.support_idx,
            "query_idx": self.query_idx,
            "nearby": self.nearby,
            "slots": self.slots,
            "scored": self.scored,
            "visible": self.visible,
        }

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(
            self.support_idx.to(device, non_blocking=True),
            self.query_idx.to(device, non_blocking=True),
            self.nearby.to(device, non_blocking=True),
            self.slots,
            None if self.scored is None else self.scored.to(device, non_blocking=True),
            self.visible,
        )

    def __getitem__(self, examples: slice) -> Split:
        """The split of some of the examples, in the same slots."""
        support, query = self.support_idx[examples], self.query_idx[examples]
        scored = None if self.scored is None else self.scored[examples]
        return Split(support, query, self.nearby[examples], self.slots, scored, self.visible)

    def in_slots(self, slots: tuple[int, ...]) -> Split | None:
        """The same split with more slots, which changes no loss; ``None`` if they are too few."""
        fits = all(mine <= offered for mine, offered in zip(self.slots, slots, strict=True))
        return replace(self, slots=slots) if fits else None


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Number of visible tokens, ``floor(L (1 - ratio))``, at least one on either side.

    Rounding errors of the product are forgiven: 10 tokens at ratio 0.9 keep one, although
    ``10 * (1 - 0.9)`` is a little below 1 in floating point.

    Raises:
        ConfigError: if the ratio would leave nothing visible or nothing masked.

    Example:
        >>> from metamae.model.masking import visible_count
        >>> visible_count(64, 0.85), visible_count(250, 0.5), visible_count(128, 0.15)
        (9, 125, 108)
    """
    if not is_whole(tokens) or tokens < 1:
        raise ConfigError(f"expected a number of tokens, got {tokens!r}")
    if not isinstance(mask_ratio, int | float) or not 0.0 < mask_ratio < 1.0:
        raise ConfigError(f"expected a mask ratio between 0 and 1, got {mask_ratio}")
    count = math.floor(tokens * (1 - mask_ratio) + 1e-9)
    if not 0 < count < tokens:
        raise ConfigError(
            f"expected a mask ratio that leaves visible and masked tokens, got {mask_ratio}, which "
            f"keeps {count} of {tokens} tokens; choose a ratio nearer to one half"
        )
    return count


def neighbour_table(inputs: Inputs) -> Tensor:
    """Neighbours of every token, int64 ``(L, 4)``; missing ones hold ``L``.

    1-D inputs: the token before and the one after. 2-D inputs: the four edge neighbours. Never
    across inputs. With grids of three axes and more, two columns an axis.

    Example:
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.masking import neighbour_table
        >>> neighbour_table((Tabular(name="row", columns=3),))
        tensor([[3, 1, 3, 3],
                [0, 2, 3, 3],
                [1, 3, 3, 3]])
    """
    total = sum(spec.tokens for spec in inputs)
    columns = max(4, *(2 * len(spec.grid) for spec in inputs))
    table = torch.full((total, columns), total, dtype=torch.int64)
    offset = 0
    for spec in inputs:
        index = torch.arange(spec.tokens).reshape(spec.grid) + offset
        padded = torch.full([size + 2 for size in spec.grid], total)
        inner = tuple(slice(1, -1) for _ in spec.grid)
        padded[inner] = index
        for axis in range(len(spec.grid)):
            for side, shift in enumerate((slice(0, -2), slice(2, None))):
                window = (*inner[:axis], shift, *inner[axis + 1 :])
                table[index.flatten(), 2 * axis + side] = padded[window].flatten()
        offset += spec.tokens
    return table


class Counts(NamedTuple):
    """Tokens per input of a split."""

    support: tuple[int, ...]
    """Visible."""
    query: tuple[int, ...]
    """Masked."""
    scored: tuple[int, ...]
    """Masked, and the outer loss is taken on them."""


@dataclass(frozen=True)
class Masking:
    """Draws which tokens of each input are masked, uniformly: support/query splits of examples.

    Each input keeps ``visible_count(L_i, mask_ratio)`` of its own tokens, uniformly at random per
    example. Each masked token with a visible neighbour is drawn as nearby support independently
    with probability ``nearby_ratio``. Of the masked tokens of each input a share
    ``query_fraction``, at least one, is drawn uniformly to be scored. With a ``ratio_range`` the
    ratio is drawn first, uniformly and once for the batch.

    Example:
        >>> import torch
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.masking import Masking
        >>> masking = Masking((Tabular(name="row", columns=6),), mask_ratio=0.5, nearby_ratio=1.0)
        >>> split = masking.draw(2, torch.Generator().manual_seed(0))
        >>> split.support_idx.shape, split.query_idx.shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    inputs: Inputs
    mask_ratio: float
    nearby_ratio: float = 0.1
    query_fraction: float = 1.0
    ratio_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the ratios against every input."""
        for spec in self.inputs:
            for ratio in self.ratio_range or (self.mask_ratio,):
                visible_count(spec.tokens, ratio)
        number = isinstance(self.nearby_ratio, int | float)
        if not number or not 0.0 <= self.nearby_ratio <= 1.0:
            raise ConfigError(f"expected a nearby ratio in [0, 1], got {self.nearby_ratio}")

    @cached_property
    def support_counts(self) -> tuple[int, ...]:
        """Visible tokens per input."""
        return tuple(visible_count(spec.tokens, self.mask_ratio) for spec in self.inputs)

    @cached_property
    def query_counts(self) -> tuple[int, ...]:
        """Masked tokens per input."""
        return self._masked(self.support_counts)

    def counts_of(self, split: Split) -> Counts:
        """Tokens per input of a split, whose ratio may have been drawn."""
        visible = split.visible or self.support_counts
        return self._counts(visible)

    def _counts(self, visible: tuple[int, ...]) -> Counts:
        masked = self._masked(visible)
        scored = tuple(max(1, round(self.query_fraction * count)) for count in masked)
        return Counts(visible, masked, scored)

    def _masked(self, visible: tuple[int, ...]) -> tuple[int, ...]:
        pairs = zip(self.inputs, visible, strict=True)
        return tuple(spec.tokens - count for spec, count in pairs)

    @cached_property
    def _neighbours(self) -> Tensor:
        return neighbour_table(self.inputs)

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A random split of ``batch_size`` examples, on the CPU."""
        visible = self._draw_visible(generator)
        counts = self._counts(visible or self.support_counts)
        support, query, offset = [], [], 0
        for spec, count in zip(self.inputs, counts.support, strict=True):
            order = torch.rand(batch_size, spec.tokens, generator=generator).argsort(dim=1) + offset
            support.append(order[:, :count].sort(dim=1).values)
            query.append(order[:, count:].sort(dim=1).values)
            offset += spec.tokens
        support_idx, query_idx = torch.cat(support, 1), torch.cat(query, 1)
        drawn = torch.rand(query_idx.shape, generator=generator) < self.nearby_ratio
        nearby = drawn & self.touches_support(support_idx, query_idx)
        slots = self.count_slots(nearby, counts.query)
        scored = self._draw_scored(batch_size, counts, generator)
        return Split(support_idx, query_idx, nearby, slots, scored, visible)

    def _draw_visible(self, generator: torch.Generator) -> tuple[int, ...]:
        """Visible tokens per input at a ratio drawn for this batch; empty if none is drawn."""
        if not self.ratio_range:
            return ()
        low, high = self.ratio_range
        ratio = low + (high - low) * float(torch.rand((), generator=generator))
        return tuple(visible_count(spec.tokens, ratio) for spec in self.inputs)

    def _draw_scored(
        self, batch_size: int, counts: Counts, generator: torch.Generator
    ) -> Tensor | None:
        if self.query_fraction == 1:
            return None
        places, offset = [], 0
        for total, count in zip(counts.query, counts.scored, strict=True):
            order = torch.rand(batch_size, total, generator=generator).argsort(dim=1)
            places.append(order[:, :count].sort(dim=1).values + offset)
            offset += total
        return torch.cat(places, 1)

    def count_slots(self, nearby: Tensor, query_counts: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Per input, the largest number of nearby tokens of any example, at least one."""
        shares = nearby.split(query_counts or self.query_counts, dim=1)
        return tuple(max(1, int(share.sum(1).max())) for share in shares)

    def slot_bound(self, batch_size: int, misses: float = 1e-4) -> tuple[int, ...]:
        """Per input, a number of slots that all but a share ``misses`` of batches fit.

        A masked token is drawn with probability ``nearby_ratio`` if it has a visible neighbour. At
        most ``n`` have one, so an example's count is below a binomial one.
        """
        total, offset, bounds = len(self._neighbours), 0, []
        counts = zip(self.inputs, self.support_counts, self.query_counts, strict=True)
        for spec, support, query in counts:
            table = self._neighbours[offset : offset + spec.tokens]
            most = int((table != total).sum(1).max())
            tokens = min(query, support * most)
            bounds.append(max(1, _binomial_bound(tokens, self.nearby_ratio, misses / batch_size)))
            offset += spec.tokens
        return tuple(bounds)

    def touches_support(self, support_idx: Tensor, query_idx: Tensor) -> Tensor:
        """Boolean ``(B, Q)``: which masked tokens have a visible neighbour."""
        total = len(self._neighbours)
        device = support_idx.device
        visible = torch.zeros(len(support_idx), total + 1, dtype=torch.bool, device=device)
        visible.scatter_(1, support_idx, True)
        beside_visible = visible[:, self._neighbours.to(device)].any(dim=2)
        return beside_visible.gather(1, query_idx)


def _binomial_bound(trials: int, chance: float, tail: float) -> int:
    """The smallest ``k`` that a binomial count exceeds with probability ``tail`` at most."""
    remaining = 1.0
    for k in range(trials):
        remaining -= math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
        if remaining <= tail:
            return k
    return trials


def all_visible(inputs: Inputs, size: int) -> Split:
    """The split of ``size`` examples of which nothing is masked, on the CPU.

    Example:
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.masking import all_visible
        >>> all_visible((Tabular(name="row", columns=3),), 1).support_idx
        tensor([[0, 1, 2]])
    """
    counts = tuple(spec.tokens for spec in inputs)
    none = torch.empty(size, 0, dtype=torch.int64)
    support = torch.arange(sum(counts)).expand(size, -1)
    return Split(support, none, none.bool(), (0,) * len(counts), visible=counts)
