"""Does an operation have the second derivative that a policy takes? Found before it is needed.

Autograd notices a missing derivative of a gradient late (in the outer ``backward()``, far from the
cause) or not at all: a gradient without a graph is a constant to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from metalearn.errors import SecondDerivativeError

# Classes of nodes that raise when they are run. The first two stand for any operation; the others
# are those whose derivative torch's derivatives.yaml says is not implemented.
_RAISING = {
    "NotImplemented",
    "Error",
    "CdistBackwardBackward0",
    "PdistBackwardBackward0",
    "EmbeddingBagBackwardBackward0",
    "EmbeddingBagDenseBackwardBackward0",
    "StandardGammaGradBackward0",
    "CudnnRnnBackwardBackward0",
    "MiopenRnnBackwardBackward0",
    "CompiledFunctionBackwardBackward",
    "NoSecondDerivativeBackward",  # ours, below
}
_WRONG_ON_CPU = "WeightNormInterfaceBackward0"  # torch's second derivative of its fused kernel
_ONCE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__
_REMEDY = (
    "use one that has a second derivative (metalearn.plain_attention for attention) inside the "
    "support loss, or a policy that takes first derivatives only: "
    "LatentAdapter(differentiation=FiniteDifference()) or FirstOrder()"
)


def refuse_missing_second_derivative(results: Sequence[Tensor], boundary: Sequence[Any]) -> None:
    """Raise if the graph of gradients holds an operation whose derivative does not exist.

    Args:
        results: Gradients, taken with their graph.
        boundary: Nodes to stop at: what the gradients were taken in.

    Raises:
        SecondDerivativeError: naming the kernel where autograd knows it.
    """
    pending = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = {*pending, *boundary}
    while pending:
        node = pending.pop()
        if type(node).__name__ in _RAISING:
            raise _missing(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def refuse_while_compiling(context: Any) -> None:
    """The same for the local ``gradient`` of what dynamo is tracing.

    Without it the compiler's backend fails, with a traceback that names neither cause nor remedy.
    """
    try:
        refuse_missing_second_derivative([context.get_local("gradient").as_fake()], ())
    except SecondDerivativeError as error:
        raise _while_compiling()(str(error)) from error


@lru_cache(maxsize=1)
def _while_compiling() -> type[SecondDerivativeError]:
    """Our error as one of dynamo's, which it hands on as it is."""
    from torch._dynamo.exc import TorchRuntimeError

    return type(
        "SecondDerivativeWhileCompilingError", (SecondDerivativeError, TorchRuntimeError), {}
    )


def _missing(node: Any) -> SecondDerivativeError:
    if type(node).__name__ == "NoSecondDerivativeBackward":
        return _no_second(node.policy)
    return SecondDerivativeError(
        "expected a support loss that can be differentiated twice, got one that runs through a "
        f"kernel without second derivative ({type(node).__name__}; fused attention, cdist, "
        f"embedding_bag and compiled functions are the usual ones); {_REMEDY}"
    )


def next_node() -> int:
    """Autograd numbers its nodes as they are made; what has a smaller number was there before."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


def is_older(node: Any, start: int) -> bool:
    """Whether a node was made before node number ``start``."""
    return bool(node._sequence_nr() < start)


class Verified:
    """Which support losses were found to have a second derivative.

    Looking at every node of a graph takes longer than a small loss, so a loss is known by its code,
    by what other than tensors its names stand for, and by how many nodes its graphs have.
    """

    def __init__(self, known: dict[object, set[object]], loss: object) -> None:
        """Remember in ``known``."""
        key = _identity(loss)
        found = None if key is None else known.get(key)
        if found is None:
            found = set()
            if key is not None:
                if len(known) > 1000:  # of losses that are made anew for every call
                    known.clear()
                found.add(loss.__code__)  # type: ignore[attr-defined] # so that its id stays its own
                known[key] = found
        self.found: set[object] = found
        self.lasts = key is not None

    def knows(self, *counts: int) -> bool:
        """Whether this loss with these numbers of nodes was looked at."""
        return counts in self.found and -1 not in counts

    def add(self, forward: int, backward: int) -> None:
        """It has a second derivative."""
        if self.lasts:
            self.found.add((forward,))
            self.found.add((forward, backward))


def _identity(loss: object) -> tuple[object, ...] | None:
    """A plain function's code and what its names stand for; ``None`` for any other callable."""
    if not isinstance(loss, FunctionType):
        return None
    code, names = loss.__code__, loss.__globals__
    values = [names.get(name) for name in code.co_names]
    try:
        values += [cell.cell_contents for cell in loss.__closure__ or ()]
    except ValueError:  # a name that is not bound yet
        return None
    values += loss.__defaults__ or ()
    kept: list[object] = [id(code)]
    for value in values:  # those that callers do not make anew for each call
        if isinstance(value, (int, float, str)):
            kept.append(value)
        elif callable(value):
            kept.append(id(value))
    return tuple(kept)


class Suspects:
    """Operations of a support loss whose gradient may come without its own graph, unnoticed.

    Functions written by hand (``autograd.Function``) that are marked ``once_differentiable`` or
    call a kernel in their ``backward``, and torch's fused ``weight_norm`` on the CPU. Only those
    that the latent goes through matter.
    """

    def __init__(
        self, losses: Tensor, points: Sequence[GradientEdge], device: torch.device
    ) -> None:
        """Look for them in the graph of ``losses``, back to where the gradient is taken."""
        ends = {point.node for point in points}
        self.functions = [node for node in _suspects(losses.grad_fn) if _leads_to(node, ends)]
        self.lost: list[Any] = []
        for node in self.functions:
            self._refuse(node, device)

    def _refuse(self, node: Any, device: torch.device) -> None:
        if type(node).__name__ == "CompiledFunctionBackward":
            raise _missing(node)
        if type(node).__name__ == _WRONG_ON_CPU and device.type == "cpu":
            raise SecondDerivativeError(
                "expected a support loss whose second derivative is right, got torch's fused "
                "weight_norm with the latent in its weights, whose second derivative on the CPU "
                "is wrong; write it out: v * (g / v.norm(dim=1, keepdim=True))"
            )
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _ONCE:
            raise SecondDerivativeError(
                "expected a support loss that can be differentiated twice, got "
                f"{_name(node)}, which is marked once_differentiable; {_REMEDY}"
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context for the gradient; raises if a function's part of it lost its graph."""
        hooks = [
            node.register_hook(lambda found, given, node=node: self._look(node, found, given))
            for node in self.functions
            if isinstance(node, BackwardCFunction)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for node in self.lost:
            raise SecondDerivativeError(
                "expected a support loss that can be differentiated twice, got "
                f"{_name(node)}, whose backward() returns a result without a graph; write it with "
                f"differentiable operations, or {_REMEDY}"
            )

    def _look(self, node: Any, found: Sequence[Any], given: Sequence[Any]) -> None:
        if not any(isinstance(x, Tensor) and x.requires_grad for x in given):
            return
        parts = [x for x in found if isinstance(x, Tensor)]
        if any(not x.requires_grad and bool(x.any()) for x in parts):
            self.lost.append(node)


def _suspects(node: Any) -> Iterator[Any]:
    """Suspect nodes of a graph."""
    pending = [] if node is None else [node]
    seen = set(pending)
    while pending:
        node = pending.pop()
        kind: type = type(node)
        if _is_suspect(kind):
            yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def is_own(kind: type) -> bool:
    """Whether nodes of this class are of a function of ours that has all derivatives."""
    return bool(getattr(getattr(kind, "_forward_cls", None), "twice_differentiable", False))


@lru_cache(maxsize=4096)
def _is_suspect(kind: type) -> bool:
    return kind.__name__ == _WRONG_ON_CPU or (
        issubclass(kind, BackwardCFunction) and not is_own(kind)
    )


def _leads_to(node: Any, ends: set[Any]) -> bool:
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        if node in ends:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return False


def _name(node: Any) -> str:
    return type(node).__name__.removesuffix("Backward")


@contextmanager
def named() -> Iterator[None]:
    """Torch's own complaints about missing derivatives, by our name.

    Raises:
        SecondDerivativeError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        text = str(error)
        missing = "derivative for" in text and "not implemented" in text
        if missing or "does not currently support double backward" in text:
            raise SecondDerivativeError(
                "expected a support loss that can be differentiated twice, got one with a kernel "
                f"that cannot ({text.splitlines()[0]}); {_REMEDY}"
            ) from error
        raise


class NoSecondDerivative(torch.autograd.Function):
    """Hands on a policy's gradient, and refuses to be differentiated.

    Unlike ``once_differentiable`` it stands on every path to what the gradient depends on, so a
    derivative in any of it is refused rather than zero.
    """

    @staticmethod
    def forward(ctx: Any, policy: object, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first ``count`` tensors; the others are what they depend on."""
        ctx.policy = policy
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Refuse."""
        raise _no_second(ctx.policy)


def once(
    policy: object, gradients: Sequence[Tensor | None], depends_on: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of a policy that has no second derivative, as results of ``depends_on``."""
    if not torch.is_grad_enabled():  # nobody asked for a graph of the backward pass
        return list(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    function: Any = NoSecondDerivative
    marked = iter(function.apply(policy, len(present), *present, *depends_on))
    return [None if gradient is None else next(marked) for gradient in gradients]


def _no_second(policy: object) -> SecondDerivativeError:
    return SecondDerivativeError(
        f"expected one derivative through {policy}, got a request to differentiate twice: its "
        "backward pass gives numbers that have no derivative; use Unrolled() or Checkpointed() "
        "there, and for the inner one of nested adapters"
    )
