"""What can go wrong in an inner step, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metalearn.errors import LatentError, NonFiniteLossError, SettingError
from metalearn.pytrees import Latent

SupportLoss = Callable[[Latent], Tensor]
"""``support_loss(latent) -> (B,)``: one loss per task, computed from that task's latent."""


def in_transform() -> bool:
    """Whether ``torch.compile`` is tracing or a ``torch.func`` transform is active."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def refuse_non_finite(
    losses: Tensor, step: int, total: Tensor | None = None, *, first: int = 0
) -> None:
    """Raise unless the support losses ``(B,)`` before an inner step are finite.

    Args:
        losses: Support losses of all tasks.
        step: Number of the inner step, from 0.
        total: Their sum, where it is known.
        first: Number of the first of these tasks.

    Raises:
        NonFiniteLossError: naming the tasks.
    """
    if math.isfinite((losses.detach().sum() if total is None else total).item()):
        return
    finite = torch.isfinite(losses)  # the sum may also have overflowed
    if bool(finite.all()):
        return
    tasks = (~finite).nonzero().flatten().tolist()
    shown = ", ".join(str(first + task) for task in tasks[:5]) + (", ..." if len(tasks) > 5 else "")
    raise NonFiniteLossError(
        f"expected finite support losses, got {losses.detach()[tasks[0]].item()} before inner step "
        f"{step + 1} in {len(tasks)} of {len(losses)} tasks (index {shown}); "
        "look for NaN in these inputs, or lower the step size"
    )


def refuse_inference_mode(leaves: Sequence[Tensor]) -> None:
    """Inner gradients cannot be taken of inference tensors."""
    if torch.is_inference_mode_enabled() or any(map(Tensor.is_inference, leaves)):
        raise LatentError(
            "expected normal tensors, got torch.inference_mode(); "
            "inner steps need gradients: evaluate under torch.no_grad() instead"
        )


def refuse_tensors(owner: str, **settings: object) -> None:
    """A tensor given as a number would be read once and never learned.

    Raises:
        SettingError: naming the setting.
    """
    for name, value in settings.items():
        if isinstance(value, Tensor) and (value.requires_grad or value.numel() != 1):
            raise SettingError(
                f"expected a number for {name} of {owner}, got a tensor of shape "
                f"{tuple(value.shape)} that requires_grad={value.requires_grad}, which would not "
                "be learned; give float(value), or for a step size LearnedStepSize(initial)"
            )
