"""What an adaptation returns."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Adaptation:
    """What an inner loop found.

    Attributes:
        latent: The refined latent; structure, shapes and dtypes of the one that was given.
        losses: Detached support losses, ``(steps, B)``: row ``t`` was taken before step ``t``. One
            more row, taken after the last step, when the adapter was called with
            ``final_loss=True`` (one more evaluation of the support loss).
        trace: Norms per step and task when called with ``trace=True``, else ``None``.

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

    def __repr__(self) -> str:
        """First and last mean loss, which is what one looks for."""
        if len(self.losses) == 0:
            return "Adaptation(no steps)"
        means = self.losses.mean(dim=1)
        return (
            f"Adaptation(tasks={self.losses.shape[1]}, mean support loss "
            f"{means[0].item():.4g} -> {means[-1].item():.4g} over {len(means)} evaluations)"
        )
