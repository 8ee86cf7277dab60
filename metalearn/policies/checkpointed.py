"""Inner gradients that keep their inputs instead of their graph.

A policy built on this computes the inner gradient without a graph in the forward pass, and decides
in the backward pass how to pull a cotangent back through it (:class:`GradientRule`). Between the
two passes only the latent of each step is held, so memory hardly grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from metalearn.inner import InnerLoop, Step
from metalearn.policies.capture import (
    Held,
    RandomAndPrecision,
    Recorder,
    call_and_capture,
    freeze_closure,
)
from metalearn.policies.policy import Refinement, refuse_transforms, run
from metalearn.policies.replay import refuse_changed_calls, refuse_changed_values
from metalearn.recomputation import recomputing
from metalearn.second_derivatives import named, once


@dataclass
class GradientCall:
    """One evaluation of the inner gradient: everything besides its tensors."""

    rule: GradientRule
    inner: InnerLoop
    number: int
    ambient: RandomAndPrecision
    captured: int
    record: Recorder
    losses: Tensor
    values: list[Tensor]


class GradientRule(Protocol):
    """How a cotangent of the inner gradient becomes one of the latent and of captured tensors."""

    @property
    def needs_second_derivative(self) -> bool:
        """Whether exact second derivatives are taken, which can be differentiated again."""
        ...

    def inspect(self, record: Recorder, captured: Sequence[Tensor], losses: Tensor) -> None:
        """Look at an evaluation of the loss: raise if the rule cannot work with it."""
        ...

    def pull_back(
        self,
        call: GradientCall,
        latent: Sequence[Tensor],
        captured: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """The vector-Jacobian product, for the latent's leaves and then the captured tensors."""
        ...


def run_recomputed(rule: GradientRule, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
    """Run an inner loop whose gradients are differentiated by ``rule``."""
    inner = replace(inner, support_loss=freeze_closure(inner.support_loss))
    current, state, records = list(leaves), inner.update.initial_state(leaves), []
    for number in range(inner.steps):
        step = _step(rule, inner, current, state, number)
        current, state = step.leaves, step.state
        records.append(step.record)
    return Refinement(current, records, inner)


def _step(
    rule: GradientRule, inner: InnerLoop, leaves: Sequence[Tensor], state: Any, number: int
) -> Step:
    ambient = RandomAndPrecision(inner.device)
    with torch.enable_grad(), inner.precision(), _private_graph():
        points = inner.points(leaves)
        losses, captured, record = call_and_capture(inner.call, points.given)
        total = losses.sum()
        inner.validated(losses, number, points.given, points.versions, total)
        inner.note_writes(points)
        rule.inspect(record, captured, losses)
        points = points._replace(start=record.start)
        values = inner.gradient_in(points, total, leaves, create_graph=inner.unknown(points, total))
    losses, values = losses.detach(), [value.detach() for value in values]
    # Aliases, as the function's results remember the function.
    kept = [value.detach() for value in values]
    call = GradientCall(rule, inner, number, ambient, len(captured), record, losses, kept)
    function = _Gradient if rule.needs_second_derivative else _GradientOnce
    gradients = list(function.apply(call, values, *leaves, *captured))
    return inner.move(leaves, gradients, losses, state, number)


def _private_graph() -> AbstractContextManager[object]:
    """A context in which what a graph saves is no business of hooks around the adapter.

    `torch.utils.checkpoint` counts what is saved, and would evaluate everything around the adapter
    again for an inner gradient that is taken at once.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: True)
    if top(False) is None:
        return nullcontext()
    return saved_tensors_hooks(lambda saved: saved.detach(), lambda saved: saved)


class _Gradient(torch.autograd.Function):
    """The inner gradient as a function of latent and captured tensors."""

    @staticmethod
    def forward(ctx: Any, call: GradientCall, values: list[Tensor], *tensors: Tensor) -> Any:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return (None, None, *_pull_back(ctx.call, ctx.saved_tensors, cotangents))


class _GradientOnce(_Gradient):
    """The same for rules whose result cannot be differentiated again."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        call: GradientCall = ctx.call
        tensors = ctx.saved_tensors  # once only: activation checkpointing insists
        with torch.no_grad():
            pulled = _pull_back(call, tensors, cotangents)
        return (None, None, *once(call.rule, pulled, [*tensors, *cotangents]))


def _pull_back(
    call: GradientCall, tensors: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    split = len(tensors) - call.captured
    return call.rule.pull_back(call, tensors[:split], tensors[split:], cotangents)


@dataclass(frozen=True)
class Checkpointed:
    """Exact, like :class:`Unrolled`, with memory that hardly grows with the number of steps.

    Only the latent (and the update rule's state) before each step is kept. The outer backward pass
    walks the steps in reverse: it evaluates the support loss of one step again, now with the graph
    of its gradient, differentiates that and frees it (Chen et al. 2016). The peak is one step's
    graph, for one more evaluation of each step. Dropout and other random draws inside the support
    loss are replayed. Differentiable any number of times.

    Args:
        recompute: As of :class:`Unrolled`: makes that one graph smaller.

    Example:
        >>> import torch
        >>> from metalearn import Checkpointed, LatentAdapter
        >>> adapter = LatentAdapter(0.25, steps=2, differentiation=Checkpointed())
        >>> z = torch.ones(1, 1, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> z.grad
        tensor([[0.2500]])
    """

    recompute: bool = False
    needs_second_derivative = True

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`~metalearn.policies.policy.GradientPolicy`."""
        refuse_transforms(self)
        inner.recompute = self.recompute
        if not torch.is_grad_enabled():
            return run(inner, leaves, exact=[False] * inner.steps)
        return run_recomputed(self, inner, leaves)

    def inspect(self, record: Recorder, captured: Sequence[Tensor], losses: Tensor) -> None:
        """Any loss will do."""

    def pull_back(
        self,
        call: GradientCall,
        latent: Sequence[Tensor],
        captured: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """Differentiate the gradient, evaluated again with its graph."""
        again = torch.is_grad_enabled()  # inside a backward pass with create_graph=True
        pull = _pull_back_differentiably if again else _pull_back_once
        with torch.enable_grad(), call.ambient.replayed(), call.inner.precision(), named():
            return pull(call, latent, captured, cotangents)


def _pull_back_once(
    call: GradientCall,
    latent: Sequence[Tensor],
    captured: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[Tensor | None]:
    """Every tensor is a variable of its own, cut off from the graph it came from."""
    held = Held(captured)
    points = call.inner.points(latent)
    with recomputing() if call.inner.recompute else nullcontext():
        with Recorder(points.given, call.record.outside, held.stand_ins) as record:
            losses = call.inner.call(points.given)
        record.close(losses)
        refuse_changed_calls(call.rule, call.record, record)
        call.inner.validated(losses, call.number, points.given, points.versions)
        call.inner.note_writes(points)
        points = points._replace(start=record.start)
        gradients = call.inner.gradient_in(points, losses.sum(), latent, create_graph=True)
    _refuse_changed_values(call, losses, gradients, captured)
    # Edges, not tensors: the gradient's values are not needed and would be held.
    curved = [
        (get_gradient_edge(g), v)
        for g, v in zip(gradients, cotangents, strict=True)
        if g.requires_grad
    ]
    del gradients, losses
    if not curved:  # a loss linear in the latent
        return [None] * (len(latent) + len(captured))
    found = torch.autograd.grad(
        [edge for edge, _ in curved],
        [*points.where, *held.variables],
        grad_outputs=[cotangent for _, cotangent in curved],
        allow_unused=True,
    )
    return [*found[: len(latent)], *held.merge(found[len(latent) :])]


def _pull_back_differentiably(
    call: GradientCall,
    latent: Sequence[Tensor],
    captured: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[Tensor | None]:
    """The same by ``torch.func``, whose result remembers what it depends on."""
    records = []

    def gradient(points: list[Tensor], taken: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        stand_ins = {id(o): stand_in for o, stand_in in zip(captured, taken, strict=True)}

        def total(points: list[Tensor]) -> tuple[Tensor, Tensor]:
            given = [point.clone() for point in points] if call.inner.writes else points
            with Recorder(given, call.record.outside, stand_ins) as record:
                losses = call.inner.call(given)
            record.close(losses)
            records.append(record)
            return losses.sum(), losses.detach()

        found: tuple[list[Tensor], Tensor] = torch.func.grad(total, has_aux=True)(points)
        return found

    inputs = list(latent), list(captured)
    gradients, pull, losses = torch.func.vjp(gradient, *inputs, has_aux=True)  # type: ignore[misc]
    refuse_changed_calls(call.rule, call.record, records[0])
    _refuse_changed_values(call, losses, gradients, captured)
    of_latent, of_captured = pull(list(cotangents))
    return [*of_latent, *of_captured]


def _refuse_changed_values(
    call: GradientCall, losses: Tensor, gradients: Sequence[Tensor], captured: Sequence[Tensor]
) -> None:
    with torch.no_grad():
        refuse_changed_values(
            call.rule,
            call.inner,
            (call.losses, losses),
            (call.values, gradients),
            [*call.ambient.dtypes(), *(tensor.dtype for tensor in captured)],
        )
