"""Splits at several mask ratios: what a learned mask ratio chooses from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from metamae.errors import ConfigError
from metamae.inputs import Inputs
from metamae.model.masking import Masking, Split

GRID_STEPS = 20


@dataclass(frozen=True)
class RatioPart:
    """Examples ``rows`` of a batch, split at ratio number ``ratio`` of a :class:`MaskRatios`."""

    rows: slice
    ratio: int
    split: Split


@dataclass(frozen=True)
class MixedRatioSplit:
    """Splits of a batch whose parts are masked at different ratios."""

    parts: tuple[RatioPart, ...]

    def to(self, device: torch.device | str) -> MixedRatioSplit:
        """The same draw on another device."""
        return MixedRatioSplit(
            tuple(replace(part, split=part.split.to(device)) for part in self.parts)
        )

    def __len__(self) -> int:
        """Number of examples."""
        return sum(len(part.split.support_idx) for part in self.parts)


class MaskRatios:
    """The mask ratios that a set of inputs allows, and how to draw splits at each of them.

    A ratio is the masked share of all tokens. Ratios that mask the same tokens count once.

    Example:
        >>> from metamae.inputs import Tabular
        >>> from metamae.methods.ratios import MaskRatios
        >>> MaskRatios((Tabular(name="row", columns=4),)).ratios
        tensor([0.2500, 0.5000, 0.7500])
    """

    def __init__(self, inputs: Inputs, query_fraction: float = 1.0) -> None:
        """See the class."""
        maskings: dict[tuple[int, ...], Masking] = {}
        for step in range(1, GRID_STEPS):
            try:
                masking = Masking(inputs, step / GRID_STEPS, 1.0, query_fraction)
            except ConfigError:  # nothing visible or nothing masked in some input
                continue
            maskings.setdefault(masking.support_counts, masking)
        if len(maskings) < 2:
            raise ConfigError("expected inputs that allow at least two mask ratios, got too few")
        tokens = sum(spec.tokens for spec in inputs)
        self.maskings = tuple(maskings.values())
        self.ratios = torch.tensor([sum(m.query_counts) / tokens for m in self.maskings])

    def nearest(self, ratio: float) -> int:
        """Number of the ratio nearest to this one."""
        return int((self.ratios - ratio).abs().argmin())

    def draw(
        self, number: int, size: int, nearby_ratio: float, generator: torch.Generator
    ) -> Split:
        """Splits of ``size`` examples; each nearby token is kept with ``nearby_ratio``."""
        masking = self.maskings[number]
        split = masking.draw(size, generator)
        drawn = torch.rand(split.nearby.shape, generator=generator) < nearby_ratio
        nearby = split.nearby & drawn
        return replace(split, nearby=nearby, slots=masking.count_slots(nearby))
