"""Several masks of every example, drawn as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from metamae.model.masking import Split


@dataclass(frozen=True)
class SplitSet(Split):
    """Splits of the same examples, drawn independently; reads as the first of them.

    Attributes:
        splits: All of them, the first included.

    Example:
        >>> import torch
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.masking import Masking
        >>> from metamae.model.split_set import SplitSet
        >>> masking = Masking((Tabular(name="row", columns=6),), mask_ratio=0.5)
        >>> random = torch.Generator().manual_seed(0)
        >>> draw = SplitSet.of([masking.draw(4, random) for _ in range(3)])
        >>> [len(split.query_idx) for split in draw[1:3].splits]
        [2, 2, 2]
    """

    splits: tuple[Split, ...] = field(kw_only=True)

    @classmethod
    def of(cls, splits: Sequence[Split]) -> SplitSet:
        """Splits as one draw."""
        return cls(**splits[0].shared(), splits=tuple(splits))

    def to(self, device: torch.device | str) -> SplitSet:
        """The same draw on another device."""
        return SplitSet.of([split.to(device) for split in self.splits])

    def __getitem__(self, examples: slice) -> SplitSet:
        """The draw of some of the examples."""
        return SplitSet.of([split[examples] for split in self.splits])

    def in_slots(self, slots: tuple[int, ...]) -> SplitSet | None:
        """All splits with more slots; ``None`` if they are too few for one."""
        fixed = [fitted for split in self.splits if (fitted := split.in_slots(slots))]
        return SplitSet.of(fixed) if len(fixed) == len(self.splits) else None


def splits_of(split: Split) -> tuple[Split, ...]:
    """The splits that a draw holds: all of a :class:`SplitSet`, or itself."""
    return split.splits if isinstance(split, SplitSet) else (split,)
