r"""Gradient policies: how the outer gradient flows through the inner steps.

The inner loop computes :math:`z_{t+1} = U(z_t, g_t)` with
:math:`g_t = \nabla_z L(z_t; \theta)`. A policy runs that loop and decides which derivatives of
:math:`g_t` an outer ``backward()`` sees. Policies hold settings only, so one object can be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    NonFiniteLossError,
    SecondDerivativeError,
    SupportLossShapeError,
)
from metalearn.pytrees import Latent, Structure, unflatten
from metalearn.updates import StepSize, UpdateRule

SupportLoss = Callable[[Latent], Tensor]
"""``support_loss(latent) -> (B,)``: one loss per task, computed from that task's latent."""


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """What a policy has to run: a support loss, its update rule, and the number of steps."""

    support_loss: SupportLoss
    step_size: StepSize
    update: UpdateRule
    steps: int
    structure: Structure
    tasks: int
    check_finite: bool

    def losses(self, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Support loss of every task, ``(B,)``, validated."""
        losses = self.support_loss(unflatten(leaves, self.structure))
        if not isinstance(losses, Tensor) or losses.shape != (self.tasks,):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise SupportLossShapeError(
                f"expected one support loss per task, shape ({self.tasks},), got {got}; "
                "reduce over every axis but the first, e.g. loss.flatten(1).mean(1)"
            )
        if self.check_finite and not torch.compiler.is_compiling():
            _refuse_non_finite(losses, step)
        return losses

    def gradient(
        self, leaves: Sequence[Tensor], step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Gradient of each task's loss in that task's latent, and the losses, detached.

        Losses are summed over tasks: task ``b``'s loss depends on task ``b``'s latent alone, so
        the gradient of the sum holds every task's own gradient whatever the batch size.
        """
        with torch.enable_grad():
            # A fresh view is differentiated, so a closure that also captured the latent directly
            # does not change the result, and the caller's tensors are never leaves of this graph.
            points = [
                leaf.view_as(leaf)
                if create_graph and leaf.requires_grad
                else leaf.detach().requires_grad_()
                for leaf in leaves
            ]
            losses = self.losses(points, step)
            if not losses.requires_grad:
                raise _disconnected()
            gradients = torch.autograd.grad(
                losses.sum(), points, create_graph=create_graph, allow_unused=True
            )
        if all(gradient is None for gradient in gradients):
            raise _disconnected()
        filled = [
            torch.zeros_like(point) if gradient is None else gradient
            for point, gradient in zip(points, gradients, strict=True)
        ]
        return filled, losses.detach()

    def step(
        self, leaves: Sequence[Tensor], state: Any, step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Any, Tensor]:
        """One inner step: new leaves, new rule state, and the losses before the step."""
        gradients, losses = self.gradient(leaves, step, create_graph=create_graph)
        sizes = [self.step_size(step, leaf) for leaf in range(len(leaves))]
        moved, state = self.update(leaves, gradients, sizes, state)
        return moved, state, losses


class GradientPolicy(Protocol):
    """Runs an inner loop and owns the question of what is differentiated."""

    def refine(
        self, inner: InnerLoop, leaves: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the refined leaves and, per step, the ``(B,)`` losses before it."""
        ...


@dataclass(frozen=True)
class Unrolled:
    r"""Exact: differentiates through every inner step, as if the loop were written out.

    For one step :math:`z' = z - \alpha \nabla_z L(z; \theta)` the outer gradient is

    .. math::
        \frac{d}{d\theta} = \Big(I - \alpha \nabla^2_{zz} L\Big)\frac{dz}{d\theta}
            - \alpha \nabla^2_{z\theta} L ,

    applied to :math:`\partial L_{out} / \partial z'` by automatic differentiation of the gradient,
    never by forming a matrix (paper, section 2.2, Eq. 2). Memory grows with the number of steps.
    """

    def refine(
        self, inner: InnerLoop, leaves: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :class:`GradientPolicy`."""
        create_graph = torch.is_grad_enabled()
        return _run(inner, leaves, create_graph=create_graph)


@dataclass(frozen=True)
class FirstOrder:
    r"""Treats every inner gradient as a constant: :math:`dz'/dz = I` (first-order MAML).

    The refined latent has the same value as with :class:`Unrolled`; only the outer gradient
    differs, by the terms in :math:`\nabla^2 L`. Cheapest, and works with kernels that have no
    second derivative.
    """

    def refine(
        self, inner: InnerLoop, leaves: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :class:`GradientPolicy`."""
        return _run(inner, leaves, create_graph=False)


def _run(
    inner: InnerLoop, leaves: Sequence[Tensor], *, create_graph: bool
) -> tuple[list[Tensor], list[Tensor]]:
    current, state, trace = list(leaves), inner.update.initial_state(leaves), []
    for step in range(inner.steps):
        current, state, losses = inner.step(current, state, step, create_graph=create_graph)
        trace.append(losses)
    return current, trace


def _refuse_non_finite(losses: Tensor, step: int) -> None:
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    tasks = (~finite).nonzero().flatten().tolist()
    shown = ", ".join(map(str, tasks[:5])) + (", ..." if len(tasks) > 5 else "")
    raise NonFiniteLossError(
        f"expected finite support losses, got {losses.detach()[tasks[0]].item()} before inner step "
        f"{step + 1} in {len(tasks)} of {len(losses)} tasks (index {shown}); "
        "look for NaN in these inputs, or lower the step size"
    )


def _disconnected() -> DisconnectedLossError:
    return DisconnectedLossError(
        "expected a support loss that depends on the latent it is given, got one that does not; "
        "compute it from the function's argument, without detach() or torch.no_grad()"
    )


def refuse_missing_second_derivative(refined: Sequence[Tensor]) -> None:
    """Raise if the graph of ``refined`` holds an operation without a derivative.

    Autograd records such an operation (the backward of a fused attention kernel, for instance) as
    a node called ``NotImplemented`` and fails only in the outer ``backward()``, far from the
    cause. Finding it here gives an error that says what to do.

    Raises:
        SecondDerivativeError: if there is such a node.
    """
    pending = [leaf.grad_fn for leaf in refined if leaf.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.name() == "NotImplemented":
            raise SecondDerivativeError(
                "expected a support loss that can be differentiated twice, got one that runs "
                "through a kernel without second derivative (fused attention is the usual one); "
                "use plain attention inside the support loss (metamae.transformer: fused=False), "
                "or an approximate policy: LatentAdapter(differentiation=FirstOrder())"
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def refuse_inference_mode(leaves: Sequence[Tensor]) -> None:
    """Inner gradients cannot be taken of inference tensors."""
    if torch.is_inference_mode_enabled() or any(leaf.is_inference() for leaf in leaves):
        raise LatentError(
            "expected normal tensors, got torch.inference_mode(); "
            "inner steps need gradients: evaluate under torch.no_grad() instead"
        )
