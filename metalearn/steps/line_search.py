"""A step that is shortened, task by task, until the support loss has fallen enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.checks import in_transform, refuse_tensors
from metalearn.norms import at_least_float32, per_task
from metalearn.pytrees import flat_tasks
from metalearn.steps.rules import GradientDescent, UpdateRule, step_within


class LineSearch:
    r"""Shortens every task's step until its support loss falls enough (Armijo backtracking).

    With :math:`z(t)` where another rule moves to by the step sizes times :math:`t`, each task takes
    the first :math:`t_b` of :math:`1, \beta, \beta^2, \dots` for which

    .. math:: L_b(z(t_b)) \le L_b(z) - c \, \langle g_b,\, z_b - z_b(t_b) \rangle ,

    so a support loss never rises, whatever the units of the data, and one task's curvature shortens
    no other's step. A task for which no trial is short enough stays where it is. :math:`t_b` is
    piecewise constant in whatever it depends on, and is a constant for the outer gradient.

    Every trial evaluates the support loss of all tasks once more, without a graph, until all have
    found theirs; on CUDA each synchronises the device. A loss that draws random numbers draws new
    ones in every trial.

    Args:
        shrink: :math:`\beta`, in (0, 1).
        decrease: :math:`c`, in [0, 1): the share of the fall that the gradient promises.
        trials: Most trials of a step, at least 1.
        then: The rule that takes the step; plain gradient descent by default.

    Raises:
        ValueError: a setting out of its range.
        SettingError: another line search for ``then``.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, LineSearch
        >>> curvature = torch.tensor([[1.0], [10.0]])
        >>> adapter = LatentAdapter(1.0, update=LineSearch())
        >>> adapter(torch.ones(2, 1), lambda z: 0.5 * (curvature * z * z).sum(1)).latent.detach()
        tensor([[ 0.0000],
                [-0.2500]])
    """

    def __init__(
        self,
        *,
        shrink: float = 0.5,
        decrease: float = 1e-4,
        trials: int = 10,
        then: UpdateRule | None = None,
    ) -> None:
        """See the class."""
        refuse_tensors("LineSearch", shrink=shrink, decrease=decrease)
        if not 0 < shrink < 1:
            raise ValueError(f"expected shrink in (0, 1), got {shrink}")
        if not 0 <= decrease < 1:
            raise ValueError(f"expected decrease in [0, 1), got {decrease}")
        if trials < 1:
            raise ValueError(f"expected at least 1 trial, got trials={trials}")
        self.shrink, self.decrease, self.trials = shrink, decrease, trials
        self.then: UpdateRule = GradientDescent() if then is None else step_within(self, then)

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
        """The inner rule's step, by sizes that were searched for before."""
        return self.then(leaves, gradients, sizes, state)

    def searched(
        self,
        evaluate: Callable[[list[Tensor]], Tensor],
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        losses: Tensor,
        sizes: Sequence[Tensor | float],
        state: Any,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Step sizes times every task's share :math:`t_b`, and the gradients to take them by.

        Where a task stays, infinite ones are zero, for a step of size 0 would not be.

        Args:
            evaluate: Support losses ``(B,)`` of a latent, which it may write to.
            leaves: The latent, ``(B, ...)`` each.
            gradients: Of the losses in it.
            losses: ``(B,)``.
            sizes: Of a whole step.
            state: The inner rule's.
        """
        with torch.no_grad():
            before = at_least_float32(losses)
            shares = torch.ones_like(before)
            found = torch.zeros_like(before, dtype=torch.bool)
            for trial in range(self.trials):
                if trial:
                    shares = torch.where(found, shares, shares * self.shrink)
                moved, _ = self.then(leaves, gradients, _times(sizes, shares, leaves), state)
                promised = _promised(leaves, moved, gradients)
                after = at_least_float32(evaluate([leaf.clone() for leaf in moved]))
                found = found | (after <= before - self.decrease * promised)  # not of NaN
                if not in_transform() and bool(found.all()):
                    break
        kept = [
            torch.where(per_task(found, slope).bool() | slope.isfinite(), slope, 0.0)
            for slope in gradients
        ]
        return _times(sizes, torch.where(found, shares, 0.0), leaves), kept

    def __repr__(self) -> str:
        """Constructor call."""
        settings = f"shrink={self.shrink}, decrease={self.decrease}, trials={self.trials}"
        return f"LineSearch({settings}, then={self.then})"


def _times(
    sizes: Sequence[Tensor | float], shares: Tensor, leaves: Sequence[Tensor]
) -> list[Tensor]:
    return [
        size * shares.reshape(-1, *[1] * (leaf.ndim - 1))
        for size, leaf in zip(sizes, leaves, strict=True)
    ]


def _promised(
    leaves: Sequence[Tensor], moved: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """What the gradients say a move takes off each loss, ``(B,)``; 0 of a move uphill."""
    products = [
        (flat_tasks(at_least_float32(before - after)) * flat_tasks(at_least_float32(slope))).sum(1)
        for before, after, slope in zip(leaves, moved, gradients, strict=True)
    ]
    return torch.stack(products).sum(0).clamp(min=0)
