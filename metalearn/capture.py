"""Which tensors does a function use that it was not given? Policies with their own backward ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree


class _Recorder(TorchFunctionMode):
    """Notes every tensor that enters an operation without having left an earlier one."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {id(tensor): tensor for tensor in given}  # held, so that ids stay unique
        self.captured: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self.known and tensor.requires_grad:
                self.captured.setdefault(id(tensor), tensor)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if id(tensor) not in self.captured:
                self.known[id(tensor)] = tensor
        return result


def call_and_capture(
    function: Callable[[Sequence[Tensor]], Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Call ``function(given)``; also return the tensors with gradient that it took from elsewhere.

    These are a module's parameters, and any intermediate result that a closure holds. Leaves that
    only a custom ``autograd.Function`` reads are found through the graph of the result.
    """
    recorder = _Recorder(given)
    with recorder:
        result = function(given)
    captured = list(recorder.captured.values())
    boundary = {tensor.grad_fn for tensor in captured} | {tensor.grad_fn for tensor in given}
    found = {id(tensor) for tensor in [*captured, *given]}
    for leaf in _leaves(result, boundary):
        if id(leaf) not in found:
            found.add(id(leaf))
            captured.append(leaf)
    return result, captured


def _leaves(result: Tensor, boundary: set[Any]) -> list[Tensor]:
    """Leaf tensors of a graph, not going beyond ``boundary`` nodes."""
    pending = [result.grad_fn] if result.grad_fn is not None else []
    seen, leaves = set(pending), []
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        if node in boundary:
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class RandomState:
    """Random state of the CPU and, if used, of CUDA: to evaluate a function twice alike."""

    def __init__(self, device: torch.device) -> None:
        """Remember the present state."""
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def replayed(self) -> AbstractContextManager[None]:
        """A context in which draws are those that followed construction; restores afterwards."""
        return self._replayed()

    @contextmanager
    def _replayed(self) -> Any:
        devices = [self.device] if self.cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
