"""Which tokens a baseline corrupts: a fixed share of every input, drawn anew for every example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metamae.errors import ConfigError
from metamae.inputs import Inputs


@dataclass(frozen=True)
class Corruption:
    """Corrupted tokens of ``B`` examples.

    Attributes:
        index: int64 ``(B, M)``, joint indices in random order, input after input. Every input has
            a fixed number of them.
    """

    index: Tensor

    def to(self, device: torch.device | str) -> Corruption:
        """The same draw on another device."""
        return Corruption(self.index.to(device, non_blocking=True))

    def __getitem__(self, examples: slice) -> Corruption:
        """The tokens of some of the examples."""
        return Corruption(self.index[examples])

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.index)


def corrupted_count(tokens: int, rate: float) -> int:
    """Number of corrupted tokens, ``ceil(L * rate)``, rounding errors of the product forgiven.

    Example:
        >>> from metamae.methods.baselines.corruption import corrupted_count
        >>> corrupted_count(64, 0.85), corrupted_count(128, 0.15), corrupted_count(20, 0.15)
        (55, 20, 3)
    """
    return math.ceil(tokens * rate - 1e-9)


@dataclass(frozen=True)
class Corrupter:
    """Draws ``ceil(L_i * rate)`` tokens of every input, uniformly without replacement.

    DABS draws over the joined tokens of all inputs; with a share for each, no input is ever left
    without a corrupted token, and its loss is always defined.

    Args:
        inputs: Specifications of the inputs.
        rate: Share of corrupted tokens.
        least: Fewest corrupted tokens per input that a method can use.

    Raises:
        ConfigError: an input with fewer than ``least`` tokens.

    Example:
        >>> import torch
        >>> from metamae.methods.baselines.corruption import Corrupter
        >>> from metamae.inputs import Tabular
        >>> corrupter = Corrupter((Tabular(name="row", columns=6),), rate=0.4)
        >>> corrupter.draw(2, torch.Generator().manual_seed(0)).index.shape
        torch.Size([2, 3])
    """

    inputs: Inputs
    rate: float
    least: int = 1

    def __post_init__(self) -> None:
        """Check that every input has enough tokens."""
        for spec in self.inputs:
            if spec.tokens < self.least:
                raise ConfigError(
                    f"expected at least {self.least} tokens in input {spec.name!r} for this "
                    f"method, got {spec.tokens}; use smaller tokens or another method"
                )

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Corrupted tokens per input."""
        return tuple(
            max(self.least, corrupted_count(spec.tokens, self.rate)) for spec in self.inputs
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Corruption:
        """Corrupted tokens of ``batch_size`` examples, on the CPU."""
        drawn, offset = [], 0
        for spec, count in zip(self.inputs, self.counts, strict=True):
            order = torch.rand(batch_size, spec.tokens, generator=generator).argsort(dim=1)
            drawn.append(order[:, :count] + offset)
            offset += spec.tokens
        return Corruption(torch.cat(drawn, dim=1))


def zeroed(contents: Tensor, corruption: Corruption) -> Tensor:
    """Contents ``(B, L, D)`` with the corrupted tokens set to zero.

    Example:
        >>> import torch
        >>> from metamae.methods.baselines.corruption import Corruption, zeroed
        >>> zeroed(torch.ones(1, 3, 1), Corruption(torch.tensor([[2]]))).flatten()
        tensor([1., 1., 0.])
    """
    places = corruption.index.unsqueeze(-1).expand(-1, -1, contents.shape[-1])
    return contents.scatter(1, places, 0.0)
