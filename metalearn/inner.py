"""The inner loop's moving parts: a support loss, its gradient, one step. Policies arrange them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from metalearn.checks import SupportLoss, in_transform, refuse_non_finite
from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    SupportLossShapeError,
)
from metalearn.pytrees import Structure, flat_tasks, unflatten
from metalearn.second_derivatives import Suspects, refuse_missing_second_derivative
from metalearn.steps.rules import UpdateRule
from metalearn.steps.sizes import StepSize

_AS_IS = nullcontext()
_DISCONNECTED = (
    "expected a support loss that depends on the latent it is given, got one that does "
    "not; compute it from the function's argument, without detach() or torch.no_grad()"
)


class Record(NamedTuple):
    """What is kept of an inner step: ``(B,)`` numbers, detached. Norms only when traced."""

    losses: Tensor
    gradient_norms: Tensor | None = None
    step_norms: Tensor | None = None


class Step(NamedTuple):
    """What one inner step produced: the moved latent, the update rule's state, and a record."""

    leaves: list[Tensor]
    state: Any
    record: Record


@dataclass(kw_only=True, slots=True)  # not frozen: that would triple the cost of making one
class InnerLoop:
    """What a policy has to run: a support loss, its update rule, and the number of steps."""

    support_loss: SupportLoss
    step_size: StepSize
    update: UpdateRule
    steps: int
    structure: Structure
    tasks: int
    device: torch.device
    check_finite: bool = True
    full_precision: bool = False
    verify: bool = False  # look for missing second derivatives in the first exact step
    verified: bool = False  # the loss's code was looked at in an earlier call
    trace: bool = False  # record norms
    first_task: int = 0  # number of the first task, where these are a chunk of a batch

    def losses(self, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Support loss of every task, ``(B,)``, validated; it is given copies to write to."""
        with self.precision():
            losses = self._shaped_losses([leaf.clone() for leaf in leaves])
        if self.check_finite and not in_transform():
            refuse_non_finite(losses, step, first=self.first_task)
        return losses

    def _shaped_losses(self, leaves: Sequence[Tensor]) -> Tensor:
        losses = self.support_loss(unflatten(leaves, self.structure))
        if not isinstance(losses, Tensor) or losses.shape != (self.tasks,):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise SupportLossShapeError(
                f"expected one support loss per task, shape ({self.tasks},), got {got}; "
                "reduce over every axis but the first, e.g. loss.flatten(1).mean(1)"
            )
        return losses

    def gradient(
        self, leaves: Sequence[Tensor], step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Gradient of each task's loss in that task's latent, and the losses, detached.

        Losses are summed over tasks: task ``b``'s loss depends on task ``b``'s latent alone, so
        the gradient of the sum holds every task's own gradient whatever the batch size.
        """
        if in_transform():
            return self._functional_gradient(leaves, step, create_graph=create_graph)
        # The backward pass runs under the caller's autocast too, hence precision() around it.
        recorded = torch.is_grad_enabled()
        with _AS_IS if recorded else torch.enable_grad(), self.precision():
            given, edges = _copies(leaves, keep=recorded and create_graph)
            losses = self._shaped_losses(given)
            del given
            total = losses.sum()
            if self.check_finite:
                refuse_non_finite(losses, step, total, first=self.first_task)
            if self.verify and create_graph:
                self.verify = False
                start = edges[0].node._sequence_nr()
                gradients = self.verified_gradient(total, edges, leaves, start)
            else:
                gradients = loss_gradient(total, edges, leaves, create_graph=create_graph)
        return gradients, losses.detach()

    def verified_gradient(
        self, total: Tensor, edges: Sequence[GradientEdge], leaves: Sequence[Tensor], start: int
    ) -> list[Tensor]:
        """The gradient with its graph, which must have a derivative.

        ``start`` is the number of the first node of the losses' graph.

        Raises:
            SecondDerivativeError: if it does not.
        """
        suspects = Suspects(total, edges, start, self.device)
        seed = torch.ones_like(total, requires_grad=True) if suspects.functions else None
        with suspects.watched() if suspects.functions else _AS_IS:
            gradients = loss_gradient(total, edges, leaves, create_graph=True, seed=seed)
        refuse_missing_second_derivative(gradients, [edge.node for edge in edges])
        return gradients

    def step(self, leaves: Sequence[Tensor], state: Any, step: int, *, create_graph: bool) -> Step:
        """Take one inner step."""
        gradients, losses = self.gradient(leaves, step, create_graph=create_graph)
        return self.move(leaves, gradients, losses, state, step)

    def move(
        self,
        leaves: Sequence[Tensor],
        gradients: list[Tensor],
        losses: Tensor,
        state: Any,
        step: int,
    ) -> Step:
        """Apply the update rule to gradients that were computed before."""
        sizes = self.step_size.sizes(step, len(leaves))
        moved, state = self.update(leaves, gradients, sizes, state)
        for before, after in zip(leaves, moved, strict=True):
            if before.shape != after.shape:
                raise LatentError(
                    f"expected a step to keep the latent's shape {tuple(before.shape)}, got "
                    f"{tuple(after.shape)}; step sizes must broadcast against the latent: "
                    "`channels` is the size of its last axis"
                )
        if any(map(operator.is_, leaves, moved)):  # a rule kept a leaf: it may be the caller's
            moved = [
                after.view_as(after) if after is before else after
                for before, after in zip(leaves, moved, strict=True)
            ]
        record = Record(losses=losses)
        if self.trace:
            with torch.no_grad():
                moves = [after - before for before, after in zip(leaves, moved, strict=True)]
                norms = task_norm(gradients), task_norm(moves)
            record = Record(losses=losses, gradient_norms=norms[0], step_norms=norms[1])
        return Step(leaves=moved, state=state, record=record)

    def _functional_gradient(
        self, leaves: Sequence[Tensor], step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        """The same by ``torch.func``, which ``torch.compile`` and ``torch.func`` can trace."""

        def total(points: list[Tensor]) -> tuple[Tensor, Tensor]:
            losses = self.losses(points, step)
            summed = losses.sum()
            # Asked of the sum, which this level of torch.func made: losses computed outside of it
            # may require a gradient of a level further out.
            if not summed.requires_grad:
                raise DisconnectedLossError(_DISCONNECTED)
            return summed, losses.detach()

        with self.precision():
            gradients, losses = torch.func.grad(total, has_aux=True)(list(leaves))
        if not create_graph:
            gradients = [gradient.detach() for gradient in gradients]
        return gradients, losses.detach()

    def precision(self) -> AbstractContextManager[object]:
        """Autocast switched off, if the inner loop is to run in full precision."""
        if not self.full_precision:
            return _AS_IS
        return torch.autocast(self.device.type, enabled=False)


def _copies(leaves: Sequence[Tensor], *, keep: bool) -> tuple[list[Tensor], list[GradientEdge]]:
    """Copies of the latent for a loss to use, and where in the graph its gradient is taken.

    Copies, because a loss may write to what it is given; edges, because the gradient is that in
    the values from before. Being fresh, they are apart from a latent that the loss also captured.
    ``keep`` says whether they remain connected to ``leaves``.
    """
    given = [
        (leaf if keep and leaf.requires_grad else leaf.detach().requires_grad_()).clone()
        for leaf in leaves
    ]
    return given, [get_gradient_edge(copy) for copy in given]


def loss_gradient(
    total: Tensor,
    points: Sequence[Tensor] | Sequence[GradientEdge],
    leaves: Sequence[Tensor],
    *,
    create_graph: bool,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Gradient of the losses' sum in every point; zeros for a leaf the losses do not use.

    Args:
        total: The sum.
        points: What to differentiate in, as tensors or edges of the graph.
        leaves: Tensors of the points' shapes.
        create_graph: Whether the gradient is to be differentiated.
        seed: What to multiply the gradient by.

    Raises:
        DisconnectedLossError: if they use none of them.
    """
    gradients: Sequence[Tensor | None] = [None]
    if total.requires_grad:
        gradients = torch.autograd.grad(
            total, points, seed, create_graph=create_graph, allow_unused=True
        )
    used = [gradient for gradient in gradients if gradient is not None]
    if len(used) == len(points):
        return used
    if not used:
        raise DisconnectedLossError(_DISCONNECTED)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def task_norm(leaves: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all leaves of each task, ``(B,)``."""
    return torch.stack([flat_tasks(x).square().sum(1) for x in leaves]).sum(0).sqrt()


def per_task(values: Tensor, leaf: Tensor) -> Tensor:
    """Reshape ``(B,)`` so that it broadcasts against a leaf ``(B, ...)``."""
    return values.to(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
