"""`Implicit`: the derivative of an inner optimum, by the implicit function theorem."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.checks import refuse_tensors
from metalearn.errors import ConvergenceWarning, CurvatureError, CurvatureWarning
from metalearn.inner import InnerLoop, Point, Record, per_task
from metalearn.norms import at_least_float32, scaled_norm, task_norm
from metalearn.policies.capture import (
    Held,
    RandomAndPrecision,
    Recorder,
    call_and_capture,
    freeze_closure,
)
from metalearn.policies.policy import Refinement, refuse_transforms, run
from metalearn.policies.replay import refuse_changed_calls, refuse_changed_values
from metalearn.pytrees import Latent, flat_tasks, flatten
from metalearn.result import SolverReport
from metalearn.second_derivatives import named, once

Product = Callable[[list[Tensor]], list[Tensor]]


class Solution(NamedTuple):
    """What a solver found, ``(B,)`` but for the first."""

    solution: list[Tensor]
    residuals: Tensor  # norms over that of what was to be solved for
    iterations: Tensor
    unfinished: Tensor  # whether a task would have gone on


@dataclass(frozen=True)
class Implicit:
    r"""Differentiates the inner optimum instead of the steps that led to it; constant memory.

    Where :math:`\nabla_z L(z^*; \theta) = 0`, the implicit function theorem gives

    .. math::
        \frac{dz^*}{d\theta} = -H^{-1} \nabla^2_{z\theta} L, \qquad H = \nabla^2_{zz} L(z^*) ,

    so the outer gradient with cotangent :math:`v` is :math:`-\nabla_\theta (g \cdot w)` with
    :math:`H w = v`. That system is solved for every task on its own by Hessian-vector products:

    * ``"cg"``: conjugate gradients, for positive definite :math:`H` (add ``damping`` otherwise);
    * ``"neumann"``: :math:`w = \eta \sum_{k \le K} (I - \eta H)^k v`, which equals unrolling the
      last :math:`K` steps of gradient descent with step size :math:`\eta`.

    The result is as good as the inner loop is converged. An optimum does not depend on where the
    search began: the initial latent gets no gradient, unless ``proximal`` :math:`= \mu > 0` adds
    :math:`\frac{\mu}{2} \lVert z - z_0 \rVert^2` to every support loss (iMAML, Rajeswaran et al.
    2019), which also makes :math:`H` better conditioned. Step sizes get no gradient either.

    Args:
        solver: ``"cg"`` or ``"neumann"``.
        iterations: Most Hessian-vector products.
        tolerance: CG stops when every task's residual is this much smaller than :math:`v`.
        max_residual: Warn where the iterations ran out with a larger one, ``inf`` for never. The
            gradient is off by up to the condition number of :math:`H` times that. Residuals and
            iterations of every task are in ``Adaptation.convergence``.
        stop: A task whose support gradient is no longer than this stays where it is, and the inner
            loop ends when all do; 0 to take all steps.
        damping: Added to the diagonal of :math:`H`; not negative.
        proximal: :math:`\mu`; not negative.
        scale: :math:`\eta` of the Neumann series; below :math:`2 / \lambda_{max}(H)`.

    Raises:
        ValueError: a setting out of range.
        SecondDerivativeError: in the backward pass, if the support loss has no second derivative.

    Warns:
        ConvergenceWarning: in the backward pass, if conjugate gradients fall short of
            ``max_residual`` or the Neumann series diverges.

    Example:
        >>> import torch
        >>> from metalearn import Implicit, LatentAdapter
        >>> adapter = LatentAdapter(0.25, steps=40, differentiation=Implicit())
        >>> centre = torch.tensor([[3.0]], requires_grad=True)
        >>> z = adapter(torch.zeros(1, 1), lambda z: (z - 2 * centre).square().sum(1)).latent
        >>> z.sum().backward()  # the optimum is 2 * centre
        >>> centre.grad
        tensor([[2.]])
    """

    solver: Literal["cg", "neumann"] = "cg"
    iterations: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0
    proximal: float = 0.0
    scale: float | None = None
    max_residual: float = 1e-3
    stop: float = 0.0
    needs_second_derivative = False  # none in the forward graph

    def __post_init__(self) -> None:
        """Check the settings."""
        refuse_tensors("Implicit", damping=self.damping, scale=self.scale)
        if self.solver not in ("cg", "neumann"):
            raise ValueError(f"expected solver 'cg' or 'neumann', got {self.solver!r}")
        if self.iterations < 1:
            raise ValueError(f"expected at least 1 iteration, got {self.iterations}")
        if not all(0 <= x < float("inf") for x in (self.tolerance, self.damping, self.proximal)):
            raise ValueError("expected tolerance, damping and proximal >= 0")
        if not self.max_residual >= 0 or not 0 <= self.stop < float("inf"):
            raise ValueError(
                "expected max_residual >= 0 (inf for no warning) and a finite stop >= 0, got "
                f"{self.max_residual} and {self.stop}"
            )
        if self.solver == "neumann" and (self.scale is None or not self.scale > 0):
            raise ValueError(
                f"expected a positive scale for the Neumann series, got {self.scale}; "
                "the inner step size is a good choice: Implicit('neumann', scale=...)"
            )

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`~metalearn.policies.policy.GradientPolicy`."""
        refuse_transforms(self)
        if self.proximal > 0:
            inner = replace(
                inner, support_loss=_proximal(inner.support_loss, leaves, self.proximal)
            )
        inner = replace(inner, support_loss=freeze_closure(inner.support_loss))
        ambient = RandomAndPrecision(inner.device)
        found = _run(inner, leaves, self.stop)
        if not torch.is_grad_enabled():
            return found
        optimum = [leaf.detach() for leaf in found.leaves]
        with torch.enable_grad(), ambient.replayed():
            points = inner.points(optimum)
            with inner.precision():
                losses, captured, record = call_and_capture(inner.call, points.given)
            inner.validated(losses, inner.steps, points.given, points.versions)
            inner.note_writes(points)
        assert found.report is not None
        call = _Call(
            self, inner, ambient, optimum, found.report, losses.detach(), record, list(leaves)
        )
        return found._replace(leaves=list(_Optimum.apply(call, *captured)))

    def solve(self, product: Product, v: list[Tensor]) -> list[Tensor]:
        """Solve ``(H + damping) w = v`` for every task."""
        return self.solve_and_report(product, v).solution

    def solve_and_report(self, product: Product, v: list[Tensor], first_task: int = 0) -> Solution:
        """The same in float32 at least, with what is left of the system."""

        def damped(p: list[Tensor]) -> list[Tensor]:
            images = product([x.to(leaf.dtype) for x, leaf in zip(p, v, strict=True)])
            return [h.to(x.dtype) + self.damping * x for h, x in zip(images, p, strict=True)]

        # The system is linear: solved for a cotangent of length one, no inner product overflows.
        whole = [at_least_float32(x) for x in v]
        size, _ = scaled_norm(whole)
        unit = [x / per_task(size, x) for x in whole]
        if self.solver == "neumann":
            assert self.scale is not None
            found = _neumann(damped, unit, self.scale, self.iterations)
        else:
            found = _conjugate_gradient(damped, unit, self.iterations, self.tolerance, first_task)
        solution = [per_task(size, w) * w for w in found.solution]
        return found._replace(
            solution=[w.to(x.dtype) for w, x in zip(solution, v, strict=True)],
        )

    def warn_of_shortfall(self, found: Solution, first_task: int) -> None:
        """Say which tasks' systems are not solved, if any."""
        limit = 1.0 if self.solver == "neumann" else self.max_residual
        short = found.unfinished & ~(found.residuals <= limit)
        if self.max_residual == float("inf") or not bool(short.any()):
            return
        tasks = [first_task + task for task in short.nonzero().flatten().tolist()]
        shown = ", ".join(map(str, tasks[:5])) + (", ..." if len(tasks) > 5 else "")
        worst = found.residuals[short].max().item()
        where = f"{worst:.3g} in the worst of {len(tasks)} of {len(short)} tasks (index {shown})"
        if self.solver == "neumann":
            message = (
                f"expected the terms of Implicit's Neumann series to shrink, got one of {where} "
                f"after {self.iterations} products: it diverges, for the curvature is negative or "
                f"above 2 / scale = {2 / (self.scale or 1.0):.3g}; lower `scale`, take more inner "
                "steps, add `damping`, or use conjugate gradients"
            )
        else:
            message = (
                f"expected conjugate gradients of Implicit to leave a residual of at most "
                f"{self.max_residual:g}, got {where} after {self.iterations} iterations: the outer "
                "gradient is off by up to the condition number times that; raise `iterations`, add "
                "`damping` or `proximal`, or accept it by `max_residual`"
            )
        warnings.warn(message, ConvergenceWarning, stacklevel=2)


def _proximal(
    support_loss: Callable[[Latent], Tensor], start: Sequence[Tensor], weight: float
) -> Callable[[Latent], Tensor]:
    def loss(latent: Latent) -> Tensor:
        leaves, _ = flatten(latent)
        pull = [(z - z0) for z, z0 in zip(leaves, start, strict=True)]
        return support_loss(latent) + 0.5 * weight * _dot(pull, pull)

    return loss


def _run(inner: InnerLoop, leaves: Sequence[Tensor], stop: float) -> Refinement:
    """The plain loop, in which tasks stay once their gradient is at most ``stop`` long.

    Each decides for itself, so none depends on the others of its batch.
    """
    taken = torch.full((inner.tasks,), inner.steps, device=inner.device)
    if stop == 0:
        found = run(inner, leaves, exact=[False] * inner.steps)
        return found._replace(report=SolverReport(taken))
    current, state, records = list(leaves), inner.update.initial_state(leaves), []
    taken = torch.zeros_like(taken)
    for number in range(inner.steps):
        gradients, losses = inner.gradient(current, number, create_graph=False)
        moving = task_norm(gradients) > stop
        if not bool(moving.any()):
            break
        step = inner.move(current, gradients, losses, state, number)
        current = [
            torch.where(per_task(moving, leaf).bool(), after, leaf)
            for leaf, after in zip(current, step.leaves, strict=True)
        ]
        state, taken = step.state, taken + moving
        records.append(_of_moving(step.record, moving))
    return Refinement(current, records, inner, SolverReport(taken))


def _of_moving(record: Record, moving: Tensor) -> Record:
    """A record in which the other tasks took no step."""
    if record.step_norms is None:
        return record
    return record._replace(step_norms=torch.where(moving, record.step_norms, 0.0))


@dataclass
class _Call:
    policy: Implicit
    inner: InnerLoop
    ambient: RandomAndPrecision
    optimum: list[Tensor]
    report: SolverReport
    losses: Tensor
    record: Recorder
    start: list[Tensor]  # has no part in the gradient, but none in a second one either


class _Optimum(torch.autograd.Function):
    """The optimum as a function of the tensors that the support loss captured."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *captured: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*captured)
        return tuple(leaf.clone() for leaf in call.optimum)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        captured = ctx.saved_tensors  # once only: activation checkpointing insists
        with torch.no_grad(), named():
            found = _pull_back(call, captured, cotangents)
        return (None, *once(call.policy, found, [*captured, *call.start, *cotangents]))


def _pull_back(
    call: _Call, captured: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    inner = call.inner
    held = Held(captured)
    with torch.enable_grad(), call.ambient.replayed(), inner.precision():
        points = inner.points(call.optimum)
        with Recorder(points.given, call.record.outside, held.stand_ins) as record:
            losses = inner.call(points.given)
        record.close(losses)
        refuse_changed_calls(call.policy, call.record, record)
        dtypes = [*call.ambient.dtypes(), *(tensor.dtype for tensor in captured)]
        refuse_changed_values(call.policy, inner, (call.losses, losses), dtypes=dtypes)
        inner.validated(losses, inner.steps, points.given, points.versions)
        inner.note_writes(points)
        gradient = inner.verified_gradient(points, losses.sum(), call.optimum)
    curved = [g for g in gradient if g.requires_grad]

    def derivative(p: list[Tensor], inputs: Sequence[Point]) -> Sequence[Tensor | None]:
        weights = [x for x, g in zip(p, gradient, strict=True) if g.requires_grad]
        return torch.autograd.grad(
            curved, inputs, grad_outputs=weights, retain_graph=True, allow_unused=True
        )

    def product(p: list[Tensor]) -> list[Tensor]:
        rows = derivative(p, points.where) if curved else [None]
        if all(row is None for row in rows):  # a loss linear in z has no optimum
            raise CurvatureError(
                "expected a curved support loss, got one that is linear in the latent"
            )
        return [torch.zeros_like(x) if r is None else r for r, x in zip(rows, p, strict=True)]

    with inner.precision():
        solved = call.policy.solve_and_report(product, list(cotangents), inner.first_task)
        found = derivative([-w for w in solved.solution], held.variables)
    call.report.gradient_norms = task_norm([g.detach() for g in gradient])
    call.report.residuals, call.report.iterations = solved.residuals, solved.iterations
    call.policy.warn_of_shortfall(solved, inner.first_task)
    return held.merge(found)


def _conjugate_gradient(
    product: Product, v: list[Tensor], iterations: int, tolerance: float, first_task: int
) -> Solution:
    """Conjugate gradients, every task with its own coefficients.

    A task whose curvature along the search direction is not positive stops where it is, with a
    warning. A right-hand side that overflowed, as under a gradient scaler, has no solution: NaN.
    """
    solution = [torch.zeros_like(x) for x in v]
    residual, direction = list(v), list(v)
    square = start = _dot(residual, residual)
    finite = square.isfinite()
    active = finite & (square > 0)
    taken = torch.zeros_like(active, dtype=torch.long)
    bent = torch.full_like(square, float("inf"))  # the least curvature that stopped a task
    for _ in range(iterations):
        if not bool(active.any()):
            break
        taken = taken + active
        image = product(direction)
        curvature = _dot(direction, image)
        unit = curvature / square.where(active, 1.0)
        bent = torch.where(active & ~(curvature > 0), unit, bent)
        active = active & (curvature > 0)
        step = torch.where(active, square / curvature.where(active, 1.0), 0.0)
        solution = _axpy(step, direction, solution)
        residual = _axpy(-step, image, residual)
        following = _dot(residual, residual)
        active = active & (following > tolerance**2 * start)
        ratio = torch.where(active, following / square.where(square > 0, 1.0), 0.0)
        direction = _axpy(ratio, direction, residual)
        square = following
    _warn_of_curvature(bent, first_task)
    found = [x.masked_fill(per_task(~finite, x).bool(), float("nan")) for x in solution]
    return Solution(found, _relative(square, start), taken, active)


def _warn_of_curvature(bent: Tensor, first: int) -> None:
    """Warn of tasks that stopped at a curvature which is not positive, ``(B,)``.

    ``first`` is the number of the first of them, where they are a chunk of a batch.
    """
    stopped = bent < float("inf")
    if not bool(stopped.any()):
        return
    tasks, least = (first + stopped.nonzero().flatten()).tolist(), float(bent.min())
    warnings.warn(
        "expected a support loss that curves upwards at the refined latent, got a curvature of "
        f"{least:.3g} in {len(tasks)} of {len(bent)} tasks (index {tasks[:5]}), which is no "
        "minimum: their gradient is cut short. Take more inner steps, Implicit(damping=...) above "
        f"{max(-least, 0.0):.3g}, or Implicit(proximal=...)",
        CurvatureWarning,
        stacklevel=2,
    )


def _neumann(product: Product, v: list[Tensor], scale: float, iterations: int) -> Solution:
    r"""The series; the residual is that without its last term, which costs no more products."""
    term, total = list(v), list(v)
    for _ in range(iterations):
        term = [t - scale * h for t, h in zip(term, product(term), strict=True)]
        total = [a + t for a, t in zip(total, term, strict=True)]
    start = _dot(v, v)
    taken = torch.where(start > 0, iterations, 0)
    residuals = _relative(_dot(term, term), start)
    return Solution([scale * a for a in total], residuals, taken, start > 0)


def _relative(square: Tensor, start: Tensor) -> Tensor:
    """Residuals over what was to be solved for; nothing is left of nothing."""
    return torch.where(start > 0, square / start.where(start > 0, 1.0), 0.0).sqrt()


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Inner product of each task over all leaves, ``(B,)``."""
    parts = [flat_tasks(a * b).sum(1) for a, b in zip(first, second, strict=True)]
    return torch.stack(parts).sum(0)


def _axpy(factor: Tensor, x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    """``factor_b x_b + y_b``."""
    return [per_task(factor, a) * a + b for a, b in zip(x, y, strict=True)]
