"""`FiniteDifference`: second-order terms from first derivatives alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.capture import RandomState, call_and_capture
from metalearn.differentiation import Refinement, refuse_transforms, run
from metalearn.inner import InnerLoop, Step, loss_gradient, per_task, task_norm

_DEFAULT_RELATIVE = {"central": 1 / 3, "forward": 1 / 2}  # exponents of the machine precision


@dataclass(frozen=True)
class FiniteDifference:
    r"""Second-order terms by finite differences of first-order passes.

    The backward pass of an inner gradient :math:`g = \nabla_z L(z; \theta)` with a cotangent
    :math:`v` needs :math:`\nabla_{z,\theta} (g \cdot v)`, where :math:`g \cdot v` is the derivative
    of :math:`L` along :math:`v`:

    .. math::
        \nabla_{z,\theta}\,(g \cdot v) \approx
        \frac{\nabla_{z,\theta} L(z + \epsilon v) - \nabla_{z,\theta} L(z - \epsilon v)}{2 \epsilon}

    ("central", error :math:`O(\epsilon^2)`), or with :math:`L(z)` in place of the second term
    ("forward", error :math:`O(\epsilon)`). Only first derivatives of the support loss are taken, so
    fused attention works; each step keeps its latent alone, so memory does not grow with steps.

    The step is chosen per task relative to the norms,
    :math:`\epsilon_b = r\, \lVert z_b \rVert / \lVert v_b \rVert`; by default :math:`r` is the
    machine precision to the power 1/3 (central) or 1/2 (forward), which balances truncation and
    rounding. Relative error of the second-order part on the MetaMAE decoder: 1e-4 in float32 and
    1e-9 in float64 (central), 1e-3 and 1e-7 (forward). Not for half precision: keep the inner loop
    in float32 there (``LatentAdapter(full_precision=True)``).

    Args:
        relative_step: :math:`r`, positive; ``None`` for the default of the dtype.
        stencil: ``"central"`` or ``"forward"``; the latter is as dear and less accurate, and
            evaluates at :math:`z` itself, for losses that must not be left on one side.

    Raises:
        ValueError: a step that is not positive, or a latent in half precision.

    Example:
        >>> import torch
        >>> from metalearn import FiniteDifference, LatentAdapter
        >>> adapter = LatentAdapter(0.25, differentiation=FiniteDifference())
        >>> z = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        >>> adapter(z, lambda z: z.square().sum(1)).latent.sum().backward()
        >>> round(z.grad.item(), 9)
        0.5
    """

    relative_step: float | None = None
    stencil: Literal["central", "forward"] = "central"
    needs_second_derivative = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.relative_step is not None and not self.relative_step > 0:
            raise ValueError(f"expected a positive relative step, got {self.relative_step}")
        if self.stencil not in _DEFAULT_RELATIVE:
            raise ValueError(f"expected stencil 'central' or 'forward', got {self.stencil!r}")

    def refine(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """See :class:`~metalearn.differentiation.GradientPolicy`."""
        refuse_transforms(self)
        if not torch.is_grad_enabled():
            return run(inner, leaves, exact=[False] * inner.steps)
        current, state, steps = list(leaves), inner.update.initial_state(leaves), []
        for number in range(inner.steps):
            step = self._step(inner, current, state, number)
            current, state = step.leaves, step.state
            steps.append(step)
        return Refinement(current, steps)

    def relative(self, dtype: torch.dtype) -> float:
        """The relative step for latents of a dtype."""
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"expected latents in float32 or float64 for finite differences, got {dtype}; "
                "use LatentAdapter(full_precision=True)"
            )
        if self.relative_step is not None:
            return self.relative_step
        return float(torch.finfo(dtype).eps ** _DEFAULT_RELATIVE[self.stencil])

    def _step(self, inner: InnerLoop, leaves: Sequence[Tensor], state: Any, number: int) -> Step:
        relative = self.relative(leaves[0].dtype)
        random = RandomState(inner.device)
        with torch.enable_grad():
            points = [leaf.detach().requires_grad_() for leaf in leaves]
            losses, captured = call_and_capture(lambda z: inner.losses(z, number), points)
            values = loss_gradient(losses, points, create_graph=False)
        call = _Call(inner, number, relative, self.stencil, random, values, len(captured))
        gradients = list(_Gradient.apply(call, *leaves, *captured))
        return inner.move(leaves, gradients, losses.detach(), state, number)


@dataclass
class _Call:
    """Everything one differentiated gradient needs besides tensors."""

    inner: InnerLoop
    number: int
    relative: float
    stencil: str
    random: RandomState
    values: list[Tensor]
    captured: int


class _Gradient(torch.autograd.Function):
    """The inner gradient as a function of latent and captured tensors, with the stencil as vjp."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        values, call.values = call.values, []
        return tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        tensors = ctx.saved_tensors
        split = len(tensors) - call.captured
        latent, captured = tensors[:split], tensors[split:]
        length = task_norm(cotangents)
        safe = torch.where(length > 0, length, torch.ones_like(length))
        # A latent at the origin has no scale of its own: fall back to an absolute step.
        size = task_norm(latent)
        epsilon = call.relative * torch.where(size > 0, size, torch.ones_like(size)) / safe
        weight = torch.where(length > 0, 1 / epsilon, torch.zeros_like(length))
        sides = (1.0, -1.0) if call.stencil == "central" else (1.0, 0.0)
        ahead, behind = (
            _pass(
                call, latent, captured, cotangents, side * epsilon, weight / (sides[0] - sides[1])
            )
            for side in sides
        )
        return (None, *(_difference(a, b) for a, b in zip(ahead, behind, strict=True)))


def _pass(
    call: _Call,
    latent: Sequence[Tensor],
    captured: Sequence[Tensor],
    direction: Sequence[Tensor],
    epsilon: Tensor,
    weight: Tensor,
) -> Sequence[Tensor | None]:
    """Gradient of ``sum_b weight_b L_b(z + epsilon v)`` in latent and captured tensors."""
    with torch.enable_grad(), call.random.replayed():
        points = [
            (leaf + per_task(epsilon, leaf) * move).detach().requires_grad_()
            for leaf, move in zip(latent, direction, strict=True)
        ]
        losses = call.inner.losses(points, call.number)
        return torch.autograd.grad(
            losses, [*points, *captured], grad_outputs=weight.to(losses.dtype), allow_unused=True
        )


def _difference(ahead: Tensor | None, behind: Tensor | None) -> Tensor | None:
    if ahead is None or behind is None:
        return ahead
    return ahead - behind
