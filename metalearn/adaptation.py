"""`LatentAdapter`: the inner loop, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from metalearn.checks import (
    SupportLoss,
    in_transform,
    refuse_inference_mode,
    refuse_tensors,
)
from metalearn.chunks import ChunkedLoss, chunks, joined
from metalearn.inner import InnerLoop, Record
from metalearn.norms import at_least_float32
from metalearn.policies.capture import freeze_closure
from metalearn.policies.policy import GradientPolicy, Refinement
from metalearn.policies.unrolled import Unrolled
from metalearn.pytrees import Latent, check_latent, flatten, unflatten
from metalearn.result import Adaptation, Convergence, Trace
from metalearn.second_derivatives import Verified
from metalearn.steps.rules import GradientDescent, UpdateRule
from metalearn.steps.sizes import FixedStepSize, StepSize


class Call(NamedTuple):
    """One call of an adapter, as the caller made it."""

    support_loss: SupportLoss | ChunkedLoss
    steps: int | None
    final_loss: bool
    trace: bool


class LatentAdapter(nn.Module):
    r"""Refines each task's latent by gradient steps on that task's support loss.

    .. math:: z_{t+1} = z_t - \alpha\, \nabla_z L_{support}(z_t), \qquad z' = z_{steps}

    and keeps :math:`z'` differentiable in whatever :math:`z` and the loss depend on, as its
    gradient policy says (paper, section 2.2, Eq. 2). It never mutates a module, never writes to
    ``.grad``, and works under ``torch.no_grad()``, then without a meta-graph.

    Args:
        step_size: A number, or a :class:`~metalearn.steps.sizes.StepSize` such as
            :class:`~metalearn.steps.sizes.LearnedStepSize`.
        steps: Number of inner steps, at least 1.
        differentiation: How the outer gradient flows through the steps; exact by default. See
            :mod:`metalearn.policies.unrolled` for the choice.
        update: The update rule of :mod:`metalearn.steps.rules`; plain gradient descent by default.
        check_finite: Stop with the task's index when a support loss is not finite. Costs one
            device synchronisation a step on CUDA.
        full_precision: Run the inner loop in float32 with autocast switched off, whatever the
            caller's; the refined latent has the given dtype again.
        chunk_size: Refine this many tasks at a time. The support loss is then called as
            ``support_loss(latent, tasks)``, with a slice that says which tasks' latent it is
            given. The result is the same; with :class:`~metalearn.Checkpointed` the memory of an
            inner step shrinks to that of one chunk.

    Shape:
        ``latent`` is a tensor ``(B, ...)`` or a pytree of such tensors with the task axis first;
        ``support_loss(latent)`` returns ``(B,)``. Task ``b`` of the result depends on task ``b``
        of the latent and of the loss only, at any batch size.

    Raises:
        LatentError: the latent is not such a pytree, or inference mode is on.
        SupportLossShapeError: the support loss is not ``(B,)``.
        DisconnectedLossError: the support loss does not depend on the latent.
        NonFiniteLossError: a support loss is not finite.
        SecondDerivativeError: an exact policy meets a kernel without second derivative.
        ChangedLossError: in the backward pass, where a policy evaluates the support loss again and
            it is no longer what it was.
        SettingError: the step size is a tensor, which would not be learned.

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
        full_precision: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        if steps < 1:
            raise ValueError(f"expected at least 1 inner step, got steps={steps}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"expected chunks of at least 1 task, got chunk_size={chunk_size}")
        refuse_tensors("LatentAdapter", step_size=step_size)
        self.step_size = step_size if isinstance(step_size, StepSize) else FixedStepSize(step_size)
        self.steps = steps
        self.differentiation = Unrolled() if differentiation is None else differentiation
        self.update = GradientDescent() if update is None else update
        self.check_finite = check_finite
        self.full_precision = full_precision
        self.chunk_size = chunk_size
        self._verified: dict[object, set[object]] = {}

    def forward(
        self,
        latent: Latent,
        support_loss: SupportLoss | ChunkedLoss,
        *,
        steps: int | None = None,
        final_loss: bool = False,
        trace: bool = False,
    ) -> Adaptation:
        """Refine ``latent``; ``steps`` overrides the adapter's number of steps for this call."""
        call = Call(support_loss, steps, final_loss, trace)
        if self.chunk_size is None:
            return self._refine(latent, cast(SupportLoss, support_loss), call)
        leaves, structure, _ = check_latent(latent)
        frozen = cast(ChunkedLoss, freeze_closure(support_loss))
        return _joined(
            [
                self._refine(part, lambda z, t=tasks: frozen(z, t), call, first=tasks.start)  # type: ignore[misc]
                for part, tasks in chunks(leaves, structure, self.chunk_size)
            ]
        )

    def _refine(
        self, latent: Latent, support_loss: SupportLoss, call: Call, first: int = 0
    ) -> Adaptation:
        """Refine the latents of a batch, or of the chunk whose first task is ``first``."""
        steps, final_loss, trace = call.steps, call.final_loss, call.trace
        steps = self.steps if steps is None else steps
        if steps < 0:
            raise ValueError(f"expected at least 0 inner steps, got steps={steps}")
        leaves, structure, tasks = check_latent(latent)
        if not (tracing := in_transform()):
            refuse_inference_mode(leaves)
        given = leaves
        if self.full_precision:
            leaves = [at_least_float32(leaf) for leaf in leaves]
        inner = InnerLoop(
            support_loss=support_loss,
            step_size=self.step_size,
            update=self.update,
            steps=steps,
            structure=structure,
            tasks=tasks,
            device=leaves[0].device,
            check_finite=self.check_finite,
            full_precision=self.full_precision,
            verify=None if tracing else self._verification(call.support_loss),
            trace=trace,
            first_task=first,
        )
        found = self._run(inner, leaves)
        losses = [record.losses for record in found.records]
        if final_loss:
            with torch.no_grad():
                losses.append(found.inner.losses(found.leaves, inner.steps))
        refined = found.leaves
        if self.full_precision:
            refined = [leaf.to(x.dtype) for leaf, x in zip(refined, given, strict=True)]
        return Adaptation(
            latent=unflatten(refined, structure),
            losses=_rows(losses) if losses else leaves[0].new_zeros((0, tasks)),
            trace=_trace(found.records, tasks) if trace else None,
            convergence=None if found.report is None else Convergence([found.report]),
        )

    def _run(self, inner: InnerLoop, leaves: Sequence[Tensor]) -> Refinement:
        """Run the policy; once more with copies, where torch refuses what the loss writes to."""
        try:
            return self.differentiation.refine(inner, leaves)
        except RuntimeError as error:
            text = str(error)
            refused = "in an in-place operation" in text or "single memory location" in text
            if inner.writes or not refused:
                raise
        inner.writes = True
        return self.differentiation.refine(inner, leaves)

    def _verification(self, support_loss: SupportLoss | ChunkedLoss) -> Verified | None:
        """What is known of the loss's second derivative, where one is taken."""
        if not self.differentiation.needs_second_derivative or not torch.is_grad_enabled():
            return None
        return Verified(self._verified, support_loss)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what it knows of the losses it met: code cannot be pickled."""
        return {**self.__dict__, "_verified": {}}

    def extra_repr(self) -> str:
        """Settings; the step size prints as a submodule."""
        return f"steps={self.steps}, differentiation={self.differentiation}, update={self.update}"


def _rows(losses: Sequence[Tensor]) -> Tensor:
    """``(steps, B)``; a single row is not copied."""
    return losses[0].unsqueeze(0) if len(losses) == 1 else torch.stack(list(losses))


def _joined(parts: Sequence[Adaptation]) -> Adaptation:
    """The adaptations of all chunks as that of the batch."""
    flat = [flatten(part.latent) for part in parts]
    traces = [part.trace for part in parts if part.trace is not None]
    reports = [r for part in parts if part.convergence is not None for r in part.convergence.parts]
    return Adaptation(
        latent=unflatten(joined([leaves for leaves, _ in flat]), flat[0][1]),
        losses=torch.cat([part.losses for part in parts], dim=1),
        trace=Trace(*joined([(t.gradient_norms, t.step_norms) for t in traces], axis=1))
        if traces
        else None,
        convergence=Convergence(reports) if reports else None,
    )


def _trace(records: Sequence[Record], tasks: int) -> Trace:
    if not records:
        empty = torch.zeros(0, tasks)
        return Trace(empty, empty)
    gradient_norms = [r.gradient_norms for r in records if r.gradient_norms is not None]
    step_norms = [r.step_norms for r in records if r.step_norms is not None]
    return Trace(torch.stack(gradient_norms), torch.stack(step_norms))
