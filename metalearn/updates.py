"""Step sizes and update rules: how a gradient moves a latent.

A *step size* answers "how far" for a given step and leaf; an *update rule* answers "in which
direction". Both stay differentiable, so that an outer loss can train what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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

    def extra_repr(self) -> str:
        """Show which axes have sizes of their own."""
        return f"steps={self.steps}, shapes={[tuple(v.shape) for v in self.log_value]}"


class UpdateRule(Protocol):
    """Maps latents and gradients to new latents; stateless objects with explicit state."""

    def initial_state(self, leaves: Sequence[Tensor]) -> Any:
        """State before the first step."""
        ...

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: Any,
    ) -> tuple[list[Tensor], Any]:
        """One step: the new leaves and the new state."""
        ...


class GradientDescent:
    r"""Plain gradient descent, :math:`z' = z - \alpha\, g`.

    Example:
        >>> import torch
        >>> from metalearn import GradientDescent
        >>> rule = GradientDescent()
        >>> rule([torch.ones(1, 2)], [torch.ones(1, 2)], [0.25], rule.initial_state([]))
        ([tensor([[0.7500, 0.7500]])], None)
    """

    def initial_state(self, leaves: Sequence[Tensor]) -> None:
        """There is none."""
        return

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: None,
    ) -> tuple[list[Tensor], None]:
        """Move every leaf against its gradient."""
        moved = [
            leaf - in_dtype_of(leaf, size) * gradient
            for leaf, gradient, size in zip(leaves, gradients, sizes, strict=True)
        ]
        return moved, None

    def __repr__(self) -> str:
        """Constructor call."""
        return "GradientDescent()"


class Momentum:
    r"""Heavy-ball or Nesterov momentum, differentiable through its buffer.

    .. math:: m_t = \mu m_{t-1} + g_t, \qquad z_{t+1} = z_t - \alpha\, m_t

    (with Nesterov: :math:`z_{t+1} = z_t - \alpha (g_t + \mu m_t)`), as in ``torch.optim.SGD``.

    Args:
        momentum: :math:`\mu`, in [0, 1).
        nesterov: Whether to look ahead.

    Raises:
        ValueError: a momentum out of range.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, Momentum
        >>> adapter = LatentAdapter(1.0, steps=2, update=Momentum(0.5))
        >>> adapter(torch.zeros(1, 1), lambda z: z.sum(1)).latent  # 0 - 1 - (1 + 0.5)
        tensor([[-2.5000]])
    """

    def __init__(self, momentum: float = 0.9, *, nesterov: bool = False) -> None:
        """See the class."""
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"expected a momentum in [0, 1), got {momentum}")
        self.momentum, self.nesterov = momentum, nesterov

    def initial_state(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Empty buffers."""
        return [torch.zeros_like(leaf) for leaf in leaves]

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One step."""
        state = [self.momentum * m + g for m, g in zip(state, gradients, strict=True)]
        direction = state
        if self.nesterov:
            direction = [g + self.momentum * m for g, m in zip(gradients, state, strict=True)]
        moved, _ = GradientDescent()(leaves, direction, sizes, None)
        return moved, state

    def __repr__(self) -> str:
        """Constructor call."""
        return f"Momentum({self.momentum}, nesterov={self.nesterov})"


class _ScaledGradient:
    """Scales each task's gradient by a function of its norm, then lets another rule step."""

    def __init__(self, then: UpdateRule | None) -> None:
        self.then: UpdateRule = GradientDescent() if then is None else then

    def factor(self, norm: Tensor) -> Tensor:
        """What to multiply the gradients of each task by, ``(B,)``, given their norms."""
        raise NotImplementedError

    def initial_state(self, leaves: Sequence[Tensor]) -> Any:
        """The inner rule's."""
        return self.then.initial_state(leaves)

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: Any,
    ) -> tuple[list[Tensor], Any]:
        """One step."""
        factor = self.factor(_safe_task_norm(gradients))
        scaled = [
            gradient * factor.to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
            for gradient in gradients
        ]
        return self.then(leaves, scaled, sizes, state)


class ClipGradient(_ScaledGradient):
    r"""Clips every task's gradient to a norm before another rule uses it.

    .. math:: g \leftarrow g \cdot \min(1, c / \lVert g_b \rVert)

    The norm is that of one task over all leaves, so a task never scales another's gradient. It is
    differentiated through.

    Args:
        max_norm: :math:`c`, positive.
        then: The rule that takes the step; plain gradient descent by default.

    Raises:
        ValueError: a norm that is not positive.

    Example:
        >>> import torch
        >>> from metalearn import ClipGradient, LatentAdapter
        >>> adapter = LatentAdapter(1.0, update=ClipGradient(0.5))
        >>> adapter(torch.zeros(2, 1), lambda z: z.sum(1) * torch.tensor([0.1, 9.0])).latent
        tensor([[-0.1000],
                [-0.5000]])
    """

    def __init__(self, max_norm: float, then: UpdateRule | None = None) -> None:
        """See the class."""
        super().__init__(then)
        if not max_norm > 0:
            raise ValueError(f"expected a positive norm, got {max_norm}")
        self.max_norm = max_norm

    def factor(self, norm: Tensor) -> Tensor:
        """At most 1."""
        return (self.max_norm / norm).clamp(max=1.0)

    def __repr__(self) -> str:
        """Constructor call."""
        return f"ClipGradient({self.max_norm}, then={self.then})"


class NormaliseGradient(_ScaledGradient):
    r"""Divides every task's gradient by its norm before another rule uses it.

    .. math:: g \leftarrow g / (\lVert g_b \rVert + \epsilon)

    A step then has the length of its step size, whatever the scale of the loss. The norm is that
    of one task over all leaves, and is differentiated through.

    Args:
        epsilon: Keeps vanishing gradients finite; positive.
        then: The rule that takes the step; plain gradient descent by default.

    Raises:
        ValueError: an epsilon that is not positive.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, NormaliseGradient
        >>> adapter = LatentAdapter(2.0, update=NormaliseGradient())
        >>> adapter(torch.zeros(1, 2), lambda z: 5 * z[:, 0]).latent
        tensor([[-2.,  0.]])
    """

    def __init__(self, epsilon: float = 1e-8, then: UpdateRule | None = None) -> None:
        """See the class."""
        super().__init__(then)
        if not epsilon > 0:
            raise ValueError(f"expected a positive epsilon, got {epsilon}")
        self.epsilon = epsilon

    def factor(self, norm: Tensor) -> Tensor:
        """The inverse norm."""
        return 1.0 / (norm + self.epsilon)

    def __repr__(self) -> str:
        """Constructor call."""
        return f"NormaliseGradient({self.epsilon}, then={self.then})"


def _safe_task_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of each task's gradient, ``(B,)``; its derivative is finite at 0."""
    squares = [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
    total = torch.stack(squares).sum(0)
    return total.clamp(min=torch.finfo(total.dtype).tiny).sqrt()


def in_dtype_of(leaf: Tensor, size: Tensor | float) -> Tensor | float:
    """A float32 step size must not promote a bfloat16 latent."""
    return size.to(leaf.dtype) if isinstance(size, Tensor) else size
