"""A split with the random numbers of a second view."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metamae.model.masking import Split


@dataclass(frozen=True)
class ViewedSplit(Split):
    """A split, and what is random about the second view of its examples.

    Attributes:
        noise: Uniform numbers, the examples first.
    """

    noise: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, split: Split, noise: Tensor) -> ViewedSplit:
        """Both as one draw."""
        return cls(**split.shared(), noise=noise)

    def to(self, device: torch.device | str) -> ViewedSplit:
        """The same draw on another device."""
        return ViewedSplit.of(super().to(device), self.noise.to(device, non_blocking=True))

    def __getitem__(self, examples: slice) -> ViewedSplit:
        """The draw of some of the examples."""
        return ViewedSplit.of(super().__getitem__(examples), self.noise[examples])
