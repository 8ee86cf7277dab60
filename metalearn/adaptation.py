"""`LatentAdapter`: the inner loop, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.differentiation import (
    FirstOrder,
    GradientPolicy,
    InnerLoop,
    SupportLoss,
    Unrolled,
    refuse_inference_mode,
    refuse_missing_second_derivative,
)
from metalearn.pytrees import Latent, check_latent, unflatten
from metalearn.updates import FixedStepSize, GradientDescent, StepSize, UpdateRule


@dataclass(frozen=True)
class Adaptation:
    """What an inner loop found.

    Attributes:
        latent: The refined latent; structure, shapes and dtypes of the one that was given.
        losses: Detached support losses, ``(steps, B)``: row ``t`` was taken before step ``t``. One
            more row, taken after the last step, when the adapter was called with
            ``final_loss=True`` (one more evaluation of the support loss).
    """

    latent: Latent
    losses: Tensor

    def __repr__(self) -> str:
        """First and last mean loss, which is what one looks for."""
        if len(self.losses) == 0:
            return "Adaptation(no steps)"
        means = self.losses.mean(dim=1)
        return (
            f"Adaptation(tasks={self.losses.shape[1]}, mean support loss "
            f"{means[0].item():.4g} -> {means[-1].item():.4g} over {len(means)} evaluations)"
        )


class LatentAdapter(nn.Module):
    r"""Refines each task's latent by gradient steps on that task's support loss.

    .. math:: z_{t+1} = z_t - \alpha\, \nabla_z L_{support}(z_t), \qquad z' = z_{steps}

    and keeps :math:`z'` differentiable in whatever :math:`z` and the loss depend on, as its
    gradient policy says (paper, section 2.2, Eq. 2). It never mutates a module, never writes to
    ``.grad``, and works under ``torch.no_grad()``, then without a meta-graph.

    Args:
        step_size: A number, or a :class:`~metalearn.updates.StepSize` such as
            :class:`~metalearn.updates.LearnedStepSize`.
        steps: Number of inner steps, at least 1.
        differentiation: How the outer gradient flows through the steps: ``Unrolled()`` (exact,
            the default) or ``FirstOrder()``.
        update: The update rule; plain gradient descent by default.
        check_finite: Stop with the task's index when a support loss is not finite. Costs one
            device synchronisation a step on CUDA.

    Shape:
        ``latent`` is a tensor ``(B, ...)`` or a pytree of such tensors with the task axis first;
        ``support_loss(latent)`` returns ``(B,)``. Task ``b`` of the result depends on task ``b``
        of the latent and of the loss only, at any batch size.

    Raises:
        LatentError: the latent is not such a pytree, or inference mode is on.
        SupportLossShapeError: the support loss is not ``(B,)``.
        DisconnectedLossError: the support loss does not depend on the latent.
        NonFiniteLossError: a support loss is not finite.
        SecondDerivativeError: an exact policy meets a kernel without second derivative (looked
            for on the first call with gradients enabled).

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> adapter = LatentAdapter(step_size=0.5, steps=1)
        >>> latent = torch.zeros(2, 2, requires_grad=True)
        >>> refined = adapter(latent, lambda z: 0.5 * (z - target).square().sum(dim=1))
        >>> refined.latent
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]], grad_fn=<SubBackward0>)
        >>> refined.losses
        tensor([[0.5000, 2.0000]])
    """

    def __init__(
        self,
        step_size: float | StepSize = 0.5,
        *,
        steps: int = 1,
        differentiation: GradientPolicy | None = None,
        update: UpdateRule | None = None,
        check_finite: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        if steps < 1:
            raise ValueError(f"expected at least 1 inner step, got steps={steps}")
        self.step_size = step_size if isinstance(step_size, StepSize) else FixedStepSize(step_size)
        self.steps = steps
        self.differentiation = Unrolled() if differentiation is None else differentiation
        self.update = GradientDescent() if update is None else update
        self.check_finite = check_finite
        self._second_derivative_seen = False

    def forward(
        self,
        latent: Latent,
        support_loss: SupportLoss,
        *,
        steps: int | None = None,
        final_loss: bool = False,
    ) -> Adaptation:
        """Refine ``latent``; ``steps`` overrides the adapter's number of steps for this call."""
        leaves, structure, tasks = check_latent(latent)
        refuse_inference_mode(leaves)
        inner = InnerLoop(
            support_loss=support_loss,
            step_size=self.step_size,
            update=self.update,
            steps=self.steps if steps is None else steps,
            structure=structure,
            tasks=tasks,
            check_finite=self.check_finite,
        )
        refined, trace = self.differentiation.refine(inner, leaves)
        self._check_second_derivative(refined)
        if final_loss:
            with torch.no_grad():
                trace.append(inner.losses(refined, inner.steps))
        losses = torch.stack(trace) if trace else leaves[0].new_zeros((0, tasks))
        return Adaptation(latent=unflatten(refined, structure), losses=losses)

    def _check_second_derivative(self, refined: list[Tensor]) -> None:
        # Walking the graph costs milliseconds, so once per adapter is enough.
        if self._second_derivative_seen or not torch.is_grad_enabled():
            return
        if isinstance(self.differentiation, FirstOrder) or torch.compiler.is_compiling():
            return
        refuse_missing_second_derivative(refined)
        self._second_derivative_seen = True

    def extra_repr(self) -> str:
        """Settings; the step size prints as a submodule."""
        return f"steps={self.steps}, differentiation={self.differentiation}, update={self.update}"
