"""The inner loop's moving parts: a support loss, its gradient, one step. Policies arrange them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.checks import SupportLoss, in_transform, refuse_non_finite
from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    SupportLossShapeError,
)
from metalearn.norms import task_norm as task_norm  # of the policies too
from metalearn.pytrees import Structure, unflatten
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
    verify: bool = False  # look for missing second derivatives in the first step
    trace: bool = False  # record norms
    first_task: int = 0  # number of the first task, where these are a chunk of a batch

    def losses(self, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Support loss of every task, ``(B,)``, validated."""
        with self.precision():
            losses = self._shaped_losses(leaves)
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
            # A view made under no_grad claims to require a gradient and has none: detach it.
            own = recorded and step > 0
            points = _points(leaves, own=own, create_graph=create_graph)
            losses = self._shaped_losses(points)
            total = losses.sum()
            if self.check_finite:
                refuse_non_finite(losses, step, total, first=self.first_task)
            gradients = loss_gradient(total, points, create_graph=create_graph)
        return gradients, losses.detach()

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
        sizes = self.step_size.of_latent(step, leaves, self.structure)
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


def _points(leaves: Sequence[Tensor], *, own: bool, create_graph: bool) -> Sequence[Tensor]:
    """Where a gradient is taken: tensors of the latent's values that require one.

    The first step takes fresh ones, so a closure that also captured the latent directly does not
    change the result, and the caller's tensors are never leaves of this graph. What a later step
    starts from was made by the step before; nobody else has it.
    """
    if own:
        return [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in leaves]
    return [
        leaf.view_as(leaf)
        if create_graph and leaf.requires_grad
        else leaf.detach().requires_grad_()
        for leaf in leaves
    ]


def loss_gradient(total: Tensor, points: Sequence[Tensor], *, create_graph: bool) -> list[Tensor]:
    """Gradient of the losses' sum in every point; zeros for a leaf the losses do not use.

    Raises:
        DisconnectedLossError: if they use none of them.
    """
    gradients: Sequence[Tensor | None] = [None]
    if total.requires_grad:
        gradients = torch.autograd.grad(total, points, create_graph=create_graph, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    if len(used) == len(points):
        return used
    if not used:
        raise DisconnectedLossError(_DISCONNECTED)
    return [
        torch.zeros_like(point) if gradient is None else gradient
        for point, gradient in zip(points, gradients, strict=True)
    ]


def per_task(values: Tensor, leaf: Tensor) -> Tensor:
    """Reshape ``(B,)`` so that it broadcasts against a leaf ``(B, ...)``."""
    return values.to(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
