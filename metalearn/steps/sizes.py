"""Step sizes: how far an inner step goes. Fixed, or learned by the outer optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


class StepSize(nn.Module):
    """Base of step sizes. ``step_size(step, leaf)`` broadcasts against leaf number ``leaf``.

    Example:
        >>> from metalearn import StepSize
        >>> class Halving(StepSize):
        ...     def forward(self, step, leaf):
        ...         return 0.5**step
        >>> Halving()(step=2, leaf=0)
        0.25
    """

    def forward(self, step: int, leaf: int) -> Tensor | float:
        """Size of step number ``step`` (from 0) for leaf number ``leaf`` of the latent."""
        raise NotImplementedError

    def sizes(self, step: int, leaves: int) -> Sequence[Tensor | float]:
        """Sizes of step number ``step`` for all leaves."""
        return [self(step, leaf) for leaf in range(leaves)]


class FixedStepSize(StepSize):
    """One constant for all steps, leaves and channels.

    Example:
        >>> from metalearn import FixedStepSize
        >>> FixedStepSize(0.5)(step=0, leaf=0)
        0.5
    """

    def __init__(self, value: float) -> None:
        """Raises ``ValueError`` unless ``value`` is finite and not negative."""
        super().__init__()
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"expected a finite step size >= 0, got {value}")
        self.value = float(value)

    def forward(self, step: int, leaf: int) -> float:
        """Return the constant."""
        return self.value

    def sizes(self, step: int, leaves: int) -> Sequence[float]:
        """The constant, without a call for each leaf."""
        return [self.value] * leaves

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"{self.value}"


class LearnedStepSize(StepSize):
    r"""A positive step size that the outer optimiser learns (Meta-SGD, Li et al. 2017).

    The parameter is its logarithm, :math:`\alpha = \exp(\beta)`, so every value stays positive and
    steps of the outer optimiser act on its relative size.

    Args:
        initial: Value of every step size at the start; positive.
        channels: Size of the last axis for one step size per channel; ``None`` for a scalar. For
            a pytree latent whose leaves differ in width, a pytree of the same structure holding
            each leaf's width.
        steps: Number of inner steps for one step size per step; ``None`` to share it.

    Shape:
        ``log_value[leaf]`` is ``(steps or 1, channels or 1)``.

    Raises:
        ValueError: if ``initial`` is not positive and finite, or more steps or leaves are asked
            for than there are step sizes.

    Example:
        >>> from metalearn import LearnedStepSize
        >>> size = LearnedStepSize(0.5, channels=4, steps=2)
        >>> size(step=1, leaf=0).shape
        torch.Size([4])
        >>> sum(p.numel() for p in size.parameters())
        8
    """

    def __init__(self, initial: float, *, channels: Any = None, steps: int | None = None) -> None:
        """See the class."""
        super().__init__()
        if not 0.0 < initial < float("inf"):
            raise ValueError(
                f"expected a positive, finite initial step size, got {initial}; "
                "a step size of exactly 0 cannot be learned: use a small positive value"
            )
        widths: list[int | None] = [None] if channels is None else _pytree.tree_leaves(channels)
        self.shared = len(widths) == 1
        self.steps = steps
        if any(width is not None and width < 1 for width in widths):
            raise ValueError(f"expected positive channel counts, got {widths}")
        start = torch.tensor(initial).log()
        self.log_value = nn.ParameterList(
            nn.Parameter(start.repeat(steps or 1, width or 1)) for width in widths
        )

    def forward(self, step: int, leaf: int) -> Tensor:
        """Step sizes of one step, shape ``(channels or 1,)``."""
        if self.steps is not None and step >= self.steps:
            raise ValueError(
                f"expected at most {self.steps} inner steps (one learned size each), asked for "
                f"step {step + 1}; construct LearnedStepSize(steps=...) with as many as you take"
            )
        if not self.shared and leaf >= len(self.log_value):
            raise ValueError(
                f"expected a latent with {len(self.log_value)} leaves, asked for leaf {leaf + 1}; "
                "`channels` must have the structure of the latent"
            )
        value = self.log_value[0 if self.shared else leaf]
        chosen: Tensor = value[0 if self.steps is None else step]
        return chosen.exp()

    def sizes(self, step: int, leaves: int) -> Sequence[Tensor | float]:
        """A size that all leaves share is computed once."""
        return [self(step, 0)] * leaves if self.shared else super().sizes(step, leaves)

    def extra_repr(self) -> str:
        """Show which axes have sizes of their own."""
        return f"steps={self.steps}, shapes={[tuple(v.shape) for v in self.log_value]}"
