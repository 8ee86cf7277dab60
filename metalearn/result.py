"""What an adaptation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.pytrees import Latent


@dataclass(frozen=True)
class Trace:
    """How every task moved, recorded on request (``trace=True``); all detached, ``(steps, B)``.

    Attributes:
        gradient_norms: Norm of the support gradient before each step.
        step_norms: Length of each step.
        step_sizes: Their ratio: the effective step size, after learned sizes, clipping, momentum.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter
        >>> adapter = LatentAdapter(step_size=0.5, steps=1)
        >>> adapter(torch.ones(2, 1), lambda z: z.square().sum(1), trace=True).trace.step_sizes
        tensor([[0.5000, 0.5000]])
    """

    gradient_norms: Tensor
    step_norms: Tensor

    @property
    def step_sizes(self) -> Tensor:
        """Effective step sizes; 0 where the gradient is 0."""
        return torch.where(self.gradient_norms > 0, self.step_norms / self.gradient_norms, 0.0)


@dataclass
class SolverReport:
    """What a solver wrote down of the tasks it was given, ``(B,)`` each."""

    steps: Tensor
    gradient_norms: Tensor | None = None
    residuals: Tensor | None = None
    iterations: Tensor | None = None


class Convergence:
    r"""How far :class:`~metalearn.Implicit` got with every task; all ``(B,)`` and detached.

    What is solved for is known after an outer backward pass through the refined latent, the last
    one if there were several: ``None`` until then.

    Args:
        parts: A report of each chunk of the batch.

    Example:
        >>> import torch
        >>> from metalearn import Implicit, LatentAdapter
        >>> adapter = LatentAdapter(0.5, steps=9, differentiation=Implicit(stop=1e-6))
        >>> centre = torch.tensor([[3.0], [0.0]], requires_grad=True)
        >>> refined = adapter(torch.zeros(2, 1), lambda z: (z - centre).square().sum(1))
        >>> refined.latent.sum().backward()
        >>> refined.convergence.steps, refined.convergence.iterations
        (tensor([1, 0]), tensor([1, 1]))
    """

    def __init__(self, parts: Sequence[SolverReport]) -> None:
        """See the class."""
        self.parts = tuple(parts)

    @property
    def steps(self) -> Tensor:
        """Inner steps in which the task moved."""
        return torch.cat([part.steps for part in self.parts])

    @property
    def gradient_norms(self) -> Tensor | None:
        """Norm of the support gradient at the refined latent, zero at an optimum."""
        return _joined([part.gradient_norms for part in self.parts])

    @property
    def residuals(self) -> Tensor | None:
        r"""What is left of the linear system, :math:`\lVert v - H w \rVert / \lVert v \rVert`.

        By the solver's own account, which flatters ill-conditioned systems in float32.
        """
        return _joined([part.residuals for part in self.parts])

    @property
    def iterations(self) -> Tensor | None:
        """Products with :math:`H` that the task needed."""
        return _joined([part.iterations for part in self.parts])

    def __repr__(self) -> str:
        """All of them, where they are known."""
        names = ("steps", "gradient_norms", "residuals", "iterations")
        known = {name: getattr(self, name) for name in names}
        shown = [f"{n}={None if x is None else x.tolist()}" for n, x in known.items()]
        return f"Convergence({', '.join(shown)})"


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


@dataclass(frozen=True)
class Adaptation:
    """What an inner loop found.

    Attributes:
        latent: The refined latent; structure, shapes and dtypes of the one that was given.
        losses: Detached support losses, ``(steps, B)``: row ``t`` was taken before step ``t``. One
            more row, taken after the last step, when the adapter was called with
            ``final_loss=True`` (one more evaluation of the support loss).
        trace: Norms per step and task when called with ``trace=True``, else ``None``.
        convergence: How far the inner loop and the solver of :class:`~metalearn.Implicit` got;
            ``None`` under other policies.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter
        >>> adapter = LatentAdapter(step_size=0.5, steps=1)
        >>> adapter(torch.ones(2, 1), lambda z: z.square().sum(1), final_loss=True)
        Adaptation(tasks=2, mean support loss 1 -> 0 over 2 evaluations)
    """

    latent: Latent
    losses: Tensor
    trace: Trace | None = None
    convergence: Convergence | None = None

    def __repr__(self) -> str:
        """First and last mean loss, which is what one looks for."""
        if len(self.losses) == 0:
            return "Adaptation(no steps)"
        means = self.losses.mean(dim=1)
        return (
            f"Adaptation(tasks={self.losses.shape[1]}, mean support loss "
            f"{means[0].item():.4g} -> {means[-1].item():.4g} over {len(means)} evaluations)"
        )
