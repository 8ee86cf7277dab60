"""The inner loop's moving parts: a support loss, its gradient, one step. Policies arrange them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from metalearn.checks import SupportLoss, in_transform, refuse_non_finite
from metalearn.errors import (
    DisconnectedLossError,
    LatentError,
    SupportLossShapeError,
)
from metalearn.norms import per_task as per_task  # of the policies too
from metalearn.norms import task_norm as task_norm
from metalearn.pytrees import Structure, unflatten
from metalearn.recomputation import recomputing
from metalearn.second_derivatives import (
    Suspects,
    Verified,
    next_node,
    refuse_missing_second_derivative,
    refuse_while_compiling,
)
from metalearn.steps.line_search import LineSearch
from metalearn.steps.rules import UpdateRule
from metalearn.steps.sizes import StepSize

_AS_IS = nullcontext()
_DISCONNECTED = (
    "expected a support loss that depends on the latent it is given, got one that does "
    "not; compute it from the function's argument, without detach() or torch.no_grad()"
)


Point: TypeAlias = Any
"""What a gradient is taken in: a tensor or a ``GradientEdge`` (torch's types know no mixture)."""


class Points(NamedTuple):
    """What a loss is given, where its gradient is taken, and how often the former was written to.

    ``versions`` is ``None`` where the loss may write.
    """

    given: Sequence[Tensor]
    where: list[Point]
    versions: list[int] | None = None
    nodes: list[Any] | None = None  # of the graph, that made the copies among `given`
    copies: Sequence[Tensor] = ()  # those among `given` that share no memory
    start: int | None = None  # number of a node from just before the loss was called

    def edges(self) -> list[GradientEdge]:
        """``where`` in the graph."""
        return [x if isinstance(x, GradientEdge) else get_gradient_edge(x) for x in self.where]

    def count(self, total: Tensor) -> int:
        """How many nodes autograd made for the losses' sum; -1 where it does not tell."""
        start, last = self.start, total.grad_fn
        if start is None and (first := self.given[0].grad_fn) is not None:
            start = first._sequence_nr()
        return -1 if last is None or start is None else last._sequence_nr() - start


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
    verify: Verified | None = None  # look for missing second derivatives in exact gradients
    trace: bool = False  # record norms
    first_task: int = 0  # number of the first task, where these are a chunk of a batch
    recompute: bool = False  # graphs hold how to compute results of `recomputed`

    writes: bool | None = None  # whether the loss writes to its argument; unknown before a step

    def losses(self, leaves: Sequence[Tensor], step: int) -> Tensor:
        """Support loss of every task, ``(B,)``, validated."""
        copy = self.writes is not False or in_transform()
        given = [leaf.clone() for leaf in leaves] if copy else leaves
        versions = None if copy else written(leaves)
        with self.precision():
            losses = self.call(given)
        return self.validated(losses, step, given, versions)

    def call(self, given: Sequence[Tensor]) -> Tensor:
        """The support loss as it is, but of the right shape."""
        losses = self.support_loss(unflatten(given, self.structure))
        if not isinstance(losses, Tensor) or losses.shape != (self.tasks,):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise SupportLossShapeError(
                f"expected one support loss per task, shape ({self.tasks},), got {got}; "
                "reduce over every axis but the first, e.g. loss.flatten(1).mean(1)"
            )
        return losses

    def validated(
        self,
        losses: Tensor,
        step: int,
        given: Sequence[Tensor],
        versions: Sequence[int] | None,
        total: Tensor | None = None,
    ) -> Tensor:
        """Losses that are finite, of a loss that wrote to nothing but copies."""
        if self.check_finite and not in_transform():
            refuse_non_finite(losses, step, total, first=self.first_task)
        if versions is not None:
            self.refuse_writes(step, given, versions)
        return losses

    def refuse_writes(self, step: int, given: Sequence[Tensor], versions: Sequence[int]) -> None:
        """Raise if a loss that may not do so wrote to what it was given."""
        if versions != written(given):
            raise LatentError(
                "expected a support loss that writes to its argument in every call or in none, "
                f"got one that first does before inner step {step + 1}; let it work on a copy, "
                "latent.clone(), or without inplace=True"
            )

    def points(self, leaves: Sequence[Tensor], *, keep: bool = False) -> Points:
        """The latent for a loss to use, and where its gradient is taken.

        A loss may write to what it is given, so that is a copy, and the gradient is taken in the
        copy's edge of the graph: in the values from before. Once a step of this call has shown
        that the loss does not, the steps' own tensors serve. (Expanded tensors serve at once, as
        torch refuses to write to them.) ``keep`` says whether the points remain connected to
        ``leaves``; apart from that they are fresh, so they are no latent that the loss captured.
        """
        if self.writes is False:
            own = [x if keep and x.requires_grad else x.detach().requires_grad_() for x in leaves]
            return Points(own, own, written(own))
        given: list[Tensor] = []
        nodes: list[Any] = []
        copies: list[Tensor] = []
        for leaf in leaves:
            kept = keep and leaf.requires_grad
            if not self.writes and _is_expanded(leaf):
                view = leaf.view_as(leaf) if kept else leaf.detach().requires_grad_()
                given.append(view)
                nodes.append(None)
                continue
            copy, node = self._copy(leaf, keep=kept)
            given.append(copy)
            copies.append(copy)
            nodes.append(node)
        return Points(given, [*given], nodes=nodes, copies=copies)

    def _copy(self, leaf: Tensor, *, keep: bool) -> tuple[Tensor, Any]:
        """A copy of a leaf, and the node of the graph that made it.

        One that is not connected stays a leaf, as dynamo likes them; torch refuses to write to it,
        and so to expanded tensors: then the policy is run again with ``writes`` set.
        """
        expanded = _is_expanded(leaf)
        if not keep and not self.writes:
            return leaf.detach().clone().requires_grad_(), None
        point = leaf if keep else leaf.detach().requires_grad_()
        copy = point.clone(memory_format=torch.contiguous_format) if expanded else point.clone()
        return copy, copy.grad_fn

    def note_writes(self, points: Points) -> None:
        """Whether the loss wrote to the copies that it was given: then their old edges count."""
        if self.writes is False or points.nodes is None:
            return
        if self.writes is None:
            self.writes = any(copy._version > 0 for copy in points.copies)
        if self.writes:
            for n, node in enumerate(points.nodes):
                points.where[n] = points.where[n] if node is None else GradientEdge(node, 0)

    def gradient(
        self, leaves: Sequence[Tensor], step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Gradient of each task's loss in that task's latent, and the losses, detached.

        Losses are summed over tasks: task ``b``'s loss depends on task ``b``'s latent alone, so
        the gradient of the sum holds every task's own gradient whatever the batch size.
        """
        if in_transform():
            return self._functional_gradient(leaves, step, create_graph=create_graph)
        recorded = torch.is_grad_enabled()
        keep = recorded and create_graph
        lean = keep and self.recompute
        if recorded and not self.full_precision and not lean:
            return self._gradient(leaves, step, keep=keep, create_graph=create_graph)
        # The backward pass runs under the caller's autocast too, hence precision() around it.
        with torch.enable_grad(), self.precision(), recomputing() if lean else _AS_IS:
            return self._gradient(leaves, step, keep=keep, create_graph=create_graph)

    def _gradient(
        self, leaves: Sequence[Tensor], step: int, *, keep: bool, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        points = self.points(leaves, keep=keep)
        if create_graph and self.verify is not None and points.given[0].is_leaf:
            points = points._replace(start=next_node())
        losses = self.call(points.given)
        total = losses.sum()
        if self.check_finite:
            refuse_non_finite(losses, step, total, first=self.first_task)
        if points.nodes is not None:
            self.note_writes(points)
        else:
            assert points.versions is not None
            self.refuse_writes(step, points.given, points.versions)
        gradients = self.gradient_in(points, total, leaves, create_graph=create_graph)
        return gradients, losses.detach()

    def gradient_in(
        self, points: Points, total: Tensor, leaves: Sequence[Tensor], *, create_graph: bool
    ) -> list[Tensor]:
        """Gradient of the losses' sum; one with a graph must have a derivative.

        Raises:
            SecondDerivativeError: if it does not.
        """
        node = total.grad_fn
        if self.verify is None or not create_graph or node is None:
            return loss_gradient(total, points.where, leaves, create_graph=create_graph)
        found = self.verify.found
        if ((nodes := points.count(total)),) not in found:
            return self.verified_gradient(points, total, leaves, nodes)
        gradients = loss_gradient(total, points.where, leaves, create_graph=True)
        last = gradients[-1].grad_fn
        if last is not None and (nodes, last._sequence_nr() - node._sequence_nr()) in found:
            return gradients
        edges = points.edges()
        if Suspects(total, edges, self.device).functions:  # they are watched in the act
            return self.verified_gradient(points, total, leaves, nodes)
        refuse_missing_second_derivative(gradients, [edge.node for edge in edges])
        self.verify.add(nodes, _count(total, gradients[-1]))
        return gradients

    def unknown(self, points: Points, total: Tensor) -> bool:
        """Whether the loss's second derivative was not looked at yet, though one is taken."""
        return self.verify is not None and not self.verify.knows(points.count(total))

    def verified_gradient(
        self, points: Points, total: Tensor, leaves: Sequence[Tensor], nodes: int = -1
    ) -> list[Tensor]:
        """The gradient with its graph, every node of which is looked at."""
        edges = points.edges()
        suspects = Suspects(total, edges, self.device)
        seed = torch.ones_like(total, requires_grad=True) if suspects.functions else None
        with suspects.watched() if suspects.functions else _AS_IS:
            gradients = loss_gradient(total, points.where, leaves, create_graph=True, seed=seed)
        refuse_missing_second_derivative(gradients, [edge.node for edge in edges])
        if self.verify is not None and nodes >= 0 and not suspects.functions:
            self.verify.add(nodes, _count(total, gradients[-1]))
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
        sizes = self.step_size.of_latent(step, leaves, self.structure)
        if isinstance(self.update, LineSearch):
            sizes, gradients = self._searched(self.update, leaves, gradients, losses, sizes, state)
        moved, state = self.update(leaves, gradients, sizes, state)
        kept = False
        for before, after in zip(leaves, moved, strict=True):
            if after is before:
                kept = True
            elif before.shape != after.shape:
                raise LatentError(
                    f"expected a step to keep the latent's shape {tuple(before.shape)}, got "
                    f"{tuple(after.shape)}; step sizes must broadcast against the latent: "
                    "`channels` is the size of its last axis"
                )
        if kept:  # by the rule, and it may be the caller's
            moved = [
                after.view_as(after) if after is before else after
                for before, after in zip(leaves, moved, strict=True)
            ]
        if not self.trace:
            return Step(moved, state, Record(losses))
        with torch.no_grad():
            moves = [after - before for before, after in zip(leaves, moved, strict=True)]
            return Step(moved, state, Record(losses, task_norm(gradients), task_norm(moves)))

    def _searched(
        self,
        rule: LineSearch,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        losses: Tensor,
        sizes: Sequence[Tensor | float],
        state: Any,
    ) -> tuple[Sequence[Tensor | float], list[Tensor]]:
        with self.precision():
            return rule.searched(self.call, leaves, gradients, losses, sizes, state)

    def _functional_gradient(
        self, leaves: Sequence[Tensor], step: int, *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor]:
        """The same by ``torch.func``, which ``torch.compile`` and ``torch.func`` can trace."""

        def total(points: list[Tensor]) -> tuple[Tensor, Tensor]:
            losses = self.losses(points, step)  # of copies
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
        elif torch.compiler.is_compiling():
            for gradient in gradients:  # noqa: B007 - looked up by its name
                from torch._dynamo.comptime import comptime

                comptime(refuse_while_compiling)
        else:
            refuse_missing_second_derivative(gradients, ())
        return gradients, losses.detach()

    def precision(self) -> AbstractContextManager[object]:
        """Autocast switched off, if the inner loop is to run in full precision."""
        if not self.full_precision:
            return _AS_IS
        return torch.autocast(self.device.type, enabled=False)


def _count(first: Tensor, last: Tensor) -> int:
    """How many nodes autograd made between two results; -1 where it does not tell."""
    if first.grad_fn is None or last.grad_fn is None:
        return -1
    return last.grad_fn._sequence_nr() - first.grad_fn._sequence_nr()


def written(leaves: Sequence[Tensor]) -> list[int]:
    """How often each was written to."""
    return [leaf._version for leaf in leaves]


def _is_expanded(leaf: Tensor) -> bool:
    """Whether several elements share memory, as of weights expanded over the tasks."""
    strides = leaf.stride()
    if 0 not in strides:
        return False
    shape = leaf.shape
    return any(shape[axis] > 1 for axis, stride in enumerate(strides) if stride == 0)


def loss_gradient(
    total: Tensor,
    points: Sequence[Point],
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
