"""`FiniteDifference`: second-order terms from first derivatives alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metalearn.inner import InnerLoop, per_task, task_norm
from metalearn.policies.capture import Held
from metalearn.policies.checkpointed import GradientCall, run_recomputed
from metalearn.policies.policy import Refinement, refuse_transforms, run

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
            raise ValueError(
                "expected an inner loop in full precision for finite differences, got autocast; "
                "use LatentAdapter(full_precision=True)"
            )
        self.relative(leaves)  # refuses half precision
        return run_recomputed(self, inner, leaves)

    def relative(self, leaves: Sequence[Tensor]) -> float:
        """The relative step for a latent; the least precise leaf decides."""
        coarsest = max((leaf.dtype for leaf in leaves), key=lambda dtype: torch.finfo(dtype).eps)
        if coarsest in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"expected latents in float32 or float64 for finite differences, got {coarsest}; "
                "use LatentAdapter(full_precision=True)"
            )
        if self.relative_step is not None:
            return self.relative_step
        return float(torch.finfo(coarsest).eps ** _DEFAULT_RELATIVE[self.stencil])

    def pull_back(
        self,
        call: GradientCall,
        latent: Sequence[Tensor],
        captured: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """The stencil."""
        length = task_norm(cotangents)
        # A latent at the origin has no scale of its own: fall back to an absolute step.
        size = task_norm(latent)
        scale = torch.where(size > 0, size, 1.0) / torch.where(length > 0, length, 1.0)
        epsilon = self.relative(latent) * scale
        weight = torch.where(length > 0, 1 / epsilon, 0.0)
        sides = (1.0, -1.0) if self.stencil == "central" else (1.0, 0.0)
        with torch.no_grad():
            ahead, behind = (
                _pass(call, latent, captured, cotangents, side * epsilon, weight / (1 - sides[1]))
                for side in sides
            )
        return [_difference(a, b) for a, b in zip(ahead, behind, strict=True)]


def _pass(
    call: GradientCall,
    latent: Sequence[Tensor],
    captured: Sequence[Tensor],
    direction: Sequence[Tensor],
    epsilon: Tensor,
    weight: Tensor,
) -> Sequence[Tensor | None]:
    """Gradient of ``sum_b weight_b L_b(z + epsilon v)`` in latent and captured tensors."""
    held = Held(captured)
    with torch.enable_grad(), call.ambient.replayed(), call.inner.precision():
        points = [
            (leaf + per_task(epsilon, leaf) * move).detach().requires_grad_()
            for leaf, move in zip(latent, direction, strict=True)
        ]
        with held.substituted():
            losses = call.inner.losses(points, call.number)
        gradients = torch.autograd.grad(
            losses,
            [*points, *held.variables],
            grad_outputs=weight.to(losses.dtype),
            allow_unused=True,
        )
    return [*gradients[: len(points)], *held.merge(gradients[len(points) :])]


def _difference(ahead: Tensor | None, behind: Tensor | None) -> Tensor | None:
    if ahead is None or behind is None:
        return ahead
    return ahead - behind
