"""What can go wrong in an inner step, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metalearn.errors import LatentError, NonFiniteLossError, SecondDerivativeError
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


def refuse_missing_second_derivative(results: Sequence[Tensor]) -> None:
    """Raise if the graph of ``results`` holds an operation without a derivative.

    Autograd records such an operation (the backward of a fused attention kernel, for instance) as
    a node called ``NotImplemented`` and fails only in the outer ``backward()``, far from the
    cause. Finding it here gives an error that says what to do.

    Raises:
        SecondDerivativeError: if there is such a node.
    """
    pending = [leaf.grad_fn for leaf in results if leaf.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.name().rpartition("::")[2] == "NotImplemented":
            raise SecondDerivativeError(
                "expected a support loss that can be differentiated twice, got one that runs "
                "through a kernel without second derivative (fused attention is the usual one); "
                "use metalearn.plain_attention inside the support loss, or a policy that takes "
                "first derivatives only: LatentAdapter(differentiation=FiniteDifference()) or "
                "FirstOrder()"
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def refuse_inference_mode(leaves: Sequence[Tensor]) -> None:
    """Inner gradients cannot be taken of inference tensors."""
    if torch.is_inference_mode_enabled() or any(map(Tensor.is_inference, leaves)):
        raise LatentError(
            "expected normal tensors, got torch.inference_mode(); "
            "inner steps need gradients: evaluate under torch.no_grad() instead"
        )
