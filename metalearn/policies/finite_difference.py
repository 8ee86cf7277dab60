"""`FiniteDifference`: second-order terms from first derivatives alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metalearn.errors import PrecisionError
from metalearn.inner import InnerLoop, per_task
from metalearn.policies.capture import HALF, Held, Recorder
from metalearn.policies.checkpointed import GradientCall, run_recomputed
from metalearn.policies.policy import Refinement, refuse_transforms, run
from metalearn.policies.replay import refuse_changed_calls, refuse_changed_values
from metalearn.pytrees import flat_tasks

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

    A compiled decoder may be called in the support loss, as it is compiled code that has no second
    derivative: it is traced twice, once for the forward pass, whose calls are watched, and once
    for the others, and not again in later calls.

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
        """See :class:`~metalearn.policies.policy.GradientPolicy`."""
        refuse_transforms(self)
        if not torch.is_grad_enabled():
            return run(inner, leaves, exact=[False] * inner.steps)
        if torch.is_autocast_enabled(inner.device.type) and not inner.full_precision:
            raise PrecisionError(
                "expected an inner loop in full precision for finite differences, got autocast; "
                "use LatentAdapter(full_precision=True)"
            )
        self.relative(leaves)  # refuses half precision
        return run_recomputed(self, inner, leaves)

    def relative(self, leaves: Sequence[Tensor]) -> float:
        """The relative step for a latent; the least precise leaf decides."""
        coarsest = max((leaf.dtype for leaf in leaves), key=lambda dtype: torch.finfo(dtype).eps)
        if coarsest in (torch.float16, torch.bfloat16):
            raise PrecisionError(
                f"expected latents in float32 or float64 for finite differences, got {coarsest}; "
                "use LatentAdapter(full_precision=True)"
            )
        if self.relative_step is not None:
            return self.relative_step
        return float(torch.finfo(coarsest).eps ** _DEFAULT_RELATIVE[self.stencil])

    def inspect(self, record: Recorder, captured: Sequence[Tensor], losses: Tensor) -> None:
        """Rounding to 16 bits, divided by a small step, would be the result."""
        half = next((tensor.dtype for tensor in (*captured, losses) if tensor.dtype in HALF), None)
        if record.half is None and half is None:
            return
        where = f"a result of {record.half} in 16 bits" if record.half else f"tensors in {half}"
        raise PrecisionError(
            "expected a support loss that computes in float32 or float64, for finite differences, "
            f"got {where}; keep its parameters and captured results in float32 (module.float()) "
            "and autocast out of it, or use Checkpointed() or FirstOrder()"
        )

    def pull_back(
        self,
        call: GradientCall,
        latent: Sequence[Tensor],
        captured: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """The stencil."""
        with torch.no_grad():
            stencil = self._stencil(call, latent, cotangents)
            ahead = _pass(call, latent, captured, stencil, 1.0, record=True)
            behind = _pass(call, latent, captured, stencil, -1.0 if self.central else 0.0)
            if call.inner.device.type == "cpu" or call.inner.check_finite:
                self._refuse_changes(call, latent, captured, stencil, ahead, behind)
        return [_difference(a, b) for a, b in zip(ahead.all, behind.all, strict=True)]

    @property
    def central(self) -> bool:
        """Whether both sides are looked at."""
        return self.stencil == "central"

    def _stencil(
        self, call: GradientCall, latent: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> _Stencil:
        unit: Tensor | float = 1.0
        direction, length = list(cotangents), flat_leaves(cotangents).norm(dim=1)
        size = flat_leaves(latent).norm(dim=1)
        if not _ordinary(length):  # squares overflowed, or vanished
            unit, direction = _scaled(cotangents)
            length = flat_leaves(direction).norm(dim=1)
            largest, scaled = _scaled(latent)
            size = largest * flat_leaves(scaled).norm(dim=1)
        # A latent at the origin has no scale of its own: fall back to an absolute step.
        distance = torch.where(size > 0, size, 1.0) / torch.where(length > 0, length, 1.0)
        epsilon = self.relative(latent) * distance
        weight = unit / (2 * epsilon if self.central else epsilon)
        if isinstance(unit, Tensor):
            # Overflowed, as in the first steps of a gradient scaler: so is the result.
            weight = torch.where(length > 0, weight, 0.0)
            weight = weight.masked_fill(~unit.isfinite(), float("nan"))
        return _Stencil(direction, length, epsilon, weight)

    def _refuse_changes(
        self,
        call: GradientCall,
        latent: Sequence[Tensor],
        captured: Sequence[Tensor],
        stencil: _Stencil,
        ahead: _Pass,
        behind: _Pass,
    ) -> None:
        """Losses and gradients of both passes fit those of the forward pass, to second order.

        Where they do not, as at a kink, the loss is evaluated where it was evaluated before.
        """
        if not bool(_suspicious(call, stencil, ahead, behind, central=self.central).any()):
            return
        here = replace(stencil, weight=torch.ones_like(stencil.weight))
        again = _pass(call, latent, captured, here, 0.0)
        refuse_changed_values(
            self, call.inner, (call.losses, again.losses), (call.values, again.of_latent)
        )


@dataclass
class _Stencil:
    """Where to evaluate: per task a direction, its length, how far along, the losses' weights."""

    direction: list[Tensor]
    length: Tensor
    epsilon: Tensor
    weight: Tensor


@dataclass
class _Pass:
    """Losses beside the latent, and the weighted gradients there."""

    losses: Tensor
    of_latent: list[Tensor]
    of_captured: list[Tensor | None]

    @property
    def all(self) -> list[Tensor | None]:
        """All gradients."""
        return [*self.of_latent, *self.of_captured]


def _pass(
    call: GradientCall,
    latent: Sequence[Tensor],
    captured: Sequence[Tensor],
    stencil: _Stencil,
    side: float,
    *,
    record: bool = False,
) -> _Pass:
    """Gradient of ``sum_b weight_b L_b(z + side epsilon v)`` in latent and captured tensors."""
    held = Held(captured)
    with torch.enable_grad(), call.ambient.replayed(), call.inner.precision():
        moved = [
            leaf + per_task(side * stencil.epsilon, leaf) * move
            for leaf, move in zip(latent, stencil.direction, strict=True)
        ]
        points = call.inner.points(moved)
        recorder = Recorder(points.given, call.record.outside, held.stand_ins)
        with recorder if record else held.substituted():
            losses = call.inner.call(points.given)
        if record:
            recorder.close(losses)
            refuse_changed_calls(call.rule, call.record, recorder, nearby=True)
        call.inner.validated(losses, call.number, points.given, points.versions)
        call.inner.note_writes(points)
        gradients = torch.autograd.grad(
            losses,
            [*points.where, *held.variables],
            grad_outputs=stencil.weight.to(losses.dtype),
            allow_unused=True,
        )
    count = len(latent)
    of_latent = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(latent, gradients[:count], strict=True)
    ]
    return _Pass(losses.detach(), of_latent, held.merge(gradients[count:]))


def _suspicious(
    call: GradientCall, stencil: _Stencil, ahead: _Pass, behind: _Pass, *, central: bool
) -> Tensor:
    r"""Tasks that moved further than a perturbation of this size moves them, ``(B,)``.

    With :math:`D = \epsilon\, g \cdot v` at both sides and in the middle, a smooth loss has
    :math:`L_+ + L_- - 2 L_0 \approx \frac{1}{2} (D_+ - D_-)` and :math:`D_+ + D_- \approx 2 D_0`.
    One-sided, the second evaluation is in the middle itself.
    """
    epsilon, direction = stencil.epsilon, flat_leaves(stencil.direction)
    factor = epsilon / stencil.weight
    up = factor * (flat_leaves(ahead.of_latent) * direction).sum(1)
    down = factor * (flat_leaves(behind.of_latent) * direction).sum(1)
    before = flat_leaves(call.values)
    slope = epsilon * (before * direction).sum(1)
    tolerance = (up - down).abs() + 0.05 * epsilon * stencil.length * before.norm(dim=1)
    losses = call.losses
    if not central:
        limit = torch.finfo(losses.dtype).eps ** 0.5
        changed: Tensor = (behind.losses - losses).abs() > limit * losses.abs()
        changed |= (down - slope).abs() > limit * (slope.abs() + tolerance)
        return changed
    mean = ahead.losses + behind.losses - 2 * losses
    rounding = torch.finfo(losses.dtype).eps ** 0.75
    # Not finite: no direction, or overflowed.
    unknown = tolerance.isfinite().logical_not_()
    far: Tensor = mean.abs() > tolerance + rounding * losses.abs()
    far = far | ((up + down - 2 * slope).abs() > tolerance)
    return far.masked_fill_(unknown, False)


def _ordinary(length: Tensor) -> bool:
    """Whether norms are of a size whose square is a number, and none is zero."""
    if length.numel() == 0:
        return True
    limits = torch.finfo(length.dtype)
    low, high = length.aminmax()
    return bool(low.item() > limits.tiny**0.45 and high.item() < limits.max**0.45)


def flat_leaves(leaves: Sequence[Tensor]) -> Tensor:
    """All leaves as one ``(B, n)``."""
    flat = [flat_tasks(leaf) for leaf in leaves]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _scaled(leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Largest value of each task, and the leaves divided by it: their norms do not overflow.

    Tasks without values, or with some that are not finite, become zero.
    """
    parts = [flat_tasks(leaf) for leaf in leaves if leaf.numel() > 0]
    if not parts:
        return leaves[0].new_zeros(len(leaves[0])), [*leaves]
    largest = torch.stack([part.abs().amax(1) for part in parts]).amax(0)
    inverse = torch.where((largest > 0) & largest.isfinite(), 1 / largest, 0.0)
    finite = largest.isfinite()
    return largest, [
        torch.where(_column(finite, leaf), per_task(inverse, leaf) * leaf, 0.0) for leaf in leaves
    ]


def _column(values: Tensor, leaf: Tensor) -> Tensor:
    """``(B,)`` against a leaf ``(B, ...)``, in its own dtype."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _difference(ahead: Tensor | None, behind: Tensor | None) -> Tensor | None:
    if ahead is None or behind is None:
        return ahead
    return ahead - behind
