"""Update rules: in which direction a gradient moves a latent. Differentiable throughout.

Norms, buffers and products with step sizes are computed in float32 at least: a float16 latent is
rounded once a step, when it has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.norms import at_least_float32, per_task, scaled_norm


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
            _moved(leaf, gradient, size)
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
        return [torch.zeros_like(at_least_float32(leaf)) for leaf in leaves]

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
    """Scales each task's gradient by its norm, then lets another rule step."""

    def __init__(self, then: UpdateRule | None) -> None:
        self.then: UpdateRule = GradientDescent() if then is None else step_within(self, then)

    def scaled(self, gradient: Tensor, size: Tensor, norm: Tensor) -> Tensor:
        """A gradient scaled, given ``size * norm``, the norm of its task in two factors."""
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
        size, norm = scaled_norm(gradients)
        scaled = [
            self.scaled(gradient, per_task(size, gradient), per_task(norm, gradient))
            for gradient in map(at_least_float32, gradients)
        ]
        moved, state = self.then(leaves, scaled, sizes, state)
        return [after.to(leaf.dtype) for after, leaf in zip(moved, leaves, strict=True)], state


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
        SettingError: a line search for ``then``, which belongs outermost.

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

    def scaled(self, gradient: Tensor, size: Tensor, norm: Tensor) -> Tensor:
        """Shrunk where it is longer, else untouched to the bit."""
        shrunk = gradient / size * (self.max_norm / norm)
        return torch.where(size * norm > self.max_norm, shrunk, gradient)

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
        SettingError: a line search for ``then``, which belongs outermost.

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

    def scaled(self, gradient: Tensor, size: Tensor, norm: Tensor) -> Tensor:
        """Divided by the norm."""
        return gradient / size / (norm + self.epsilon / size)

    def __repr__(self) -> str:
        """Constructor call."""
        return f"NormaliseGradient({self.epsilon}, then={self.then})"


def step_within(rule: object, then: UpdateRule) -> UpdateRule:
    """A rule that takes the step for another one; a search is no such rule.

    A line search evaluates losses before its step, which only the inner loop lets it do: within
    another rule it would search for nothing.

    Raises:
        SettingError: ``then`` is a line search.
    """
    if hasattr(then, "searched"):
        outer, inner = type(rule).__name__, type(then).__name__
        raise SettingError(
            f"expected {outer}(then=) to take a step without a search, got {inner}; put the search "
            f"outermost: {inner}(then={outer}(...))"
        )
    return then


def _moved(leaf: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
    """``leaf - size * gradient`` in float32 at least; the result has the dtype of the leaf."""
    exact = leaf.dtype is gradient.dtype and leaf.dtype.itemsize >= 4
    if exact and not isinstance(size, Tensor):
        return torch.sub(leaf, gradient, alpha=size)  # one kernel; no product is kept
    whole, slope = at_least_float32(leaf), at_least_float32(gradient)
    if isinstance(size, Tensor):
        return (whole - size.to(whole.dtype) * slope).to(leaf.dtype)
    return torch.sub(whole, slope, alpha=size).to(leaf.dtype)
