"""Meta-parameters with a range: positive ones by their logarithm, bounded ones by their logit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metalearn.errors import MultilevelError


class Positive(nn.Module):
    r"""A learned positive number, :math:`\exp(\beta)`: an outer step changes its relative size.

    Args:
        initial: Where it starts; a number, or a sequence or tensor for several at once.

    Raises:
        MultilevelError: a start that is not positive and finite.

    Example:
        >>> from metalearn.multilevel.ranges import Positive
        >>> Positive(0.5)()
        tensor(0.5000, grad_fn=<ExpBackward0>)
    """

    def __init__(self, initial: float | Tensor) -> None:
        """See the class."""
        super().__init__()
        start = torch.as_tensor(initial, dtype=_dtype(initial))
        if not bool(((start > 0) & torch.isfinite(start)).all()):
            raise MultilevelError(
                f"expected a positive start, got {initial}; an exact 0 cannot be learned: use a "
                "small positive value"
            )
        self.log_value = nn.Parameter(start.log())

    def forward(self) -> Tensor:
        """The value."""
        return self.log_value.exp()


class Bounded(nn.Module):
    r"""A learned number between two bounds, :math:`l + (h - l)\,\sigma(\beta)`.

    Args:
        initial: Where it starts, strictly between the bounds.
        low: :math:`l`.
        high: :math:`h`.

    Raises:
        MultilevelError: a start that is not strictly between the bounds.

    Example:
        >>> from metalearn.multilevel.ranges import Bounded
        >>> round(Bounded(0.5, 0.1, 0.9)().item(), 4)
        0.5
    """

    def __init__(self, initial: float, low: float = 0.0, high: float = 1.0) -> None:
        """See the class."""
        super().__init__()
        if not low < initial < high:
            raise MultilevelError(
                f"expected a start strictly between {low} and {high}, got {initial}; on a bound "
                "its gradient would be zero"
            )
        self.low, self.high = low, high
        share = (initial - low) / (high - low)
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        """The value."""
        return self.low + (self.high - self.low) * self.logit.sigmoid()


def _dtype(initial: float | Tensor) -> torch.dtype:
    floating = isinstance(initial, Tensor) and initial.is_floating_point()
    return initial.dtype if isinstance(initial, Tensor) and floating else torch.get_default_dtype()
