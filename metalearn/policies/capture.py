"""Which tensors does a function use that it was not given? Policies with their own backward ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from metalearn.errors import MetalearnError


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
        if torch.compiler.is_compiling():  # dynamo traces modes: see `call_and_capture`
            return func(*args, **(kwargs or {}))
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
    no operation in Python sees are found through the graph of the result: those of a compiled
    function, whose trace must not depend on the recorder, or it would be traced in every call.

    Raises:
        MetalearnError: if an ``autograd.Function``, as of a compiled decoder, takes an intermediate
            result that shares ancestors with the other captured tensors (see :class:`Held`).
    """
    recorder, start = _Recorder(given), _next_node()
    with recorder:
        result = function(given)
    captured = [
        tensor
        for tensor in recorder.captured.values()
        # Inside vmap an operation sees wrappers; what they wrap is found through the graph.
        if not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        # vmap and compiled functions make tensors behind the recorder's back.
        if tensor.grad_fn is None or _is_older(tensor.grad_fn, start)
    ]
    boundary = {tensor.grad_fn for tensor in captured} | {tensor.grad_fn for tensor in given}
    found = {id(tensor) for tensor in [*captured, *given]}
    leaves, taken = _leaves(result, boundary, start)
    for leaf in leaves:
        if id(leaf) not in found:
            found.add(id(leaf))
            captured.append(leaf)
    for node in taken:
        _refuse_shared_ancestors(node, captured)
    return result, captured


def _next_node() -> int:
    """Autograd numbers its nodes as they are made; what has a smaller number was there before."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return node._sequence_nr()


def _is_older(node: Any, start: int) -> bool:
    return bool(node._sequence_nr() < start)


def _leaves(result: Tensor, boundary: set[Any], start: int) -> tuple[list[Tensor], list[Any]]:
    """Leaf tensors of a graph, not going beyond ``boundary``.

    Also the nodes from before ``start`` whose results an ``autograd.Function`` took.
    """
    pending = [result.grad_fn] if result.grad_fn is not None else []
    seen, leaves, taken = set(pending), [], []
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        if node in boundary:
            continue
        opaque = isinstance(node, BackwardCFunction) and not _is_older(node, start)
        for following, _ in node.next_functions:
            if following is None:
                continue
            if opaque and _is_older(following, start):
                taken.append(following)
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves, taken


def _refuse_shared_ancestors(node: Any, captured: Sequence[Tensor]) -> None:
    """A function that took a result itself, not a stand-in, has a graph that goes on behind it."""
    nodes = {tensor.grad_fn for tensor in captured if tensor.grad_fn is not None} - {node}
    leaves = {id(tensor) for tensor in captured}
    pending = [node]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node in nodes or id(getattr(node, "variable", None)) in leaves:
            raise MetalearnError(
                "expected compiled or custom functions in the support loss to share no parameters "
                "with the results they are given, got one that would count their gradient twice; "
                "give it result.view_as(result), written inside the support loss, instead"
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class _Substitution(TorchFunctionMode):
    """Hands operations a stand-in wherever they are given a certain tensor."""

    def __init__(self, stand_ins: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.stand_ins = stand_ins

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        args, kwargs = _pytree.tree_map_only(
            Tensor,
            lambda tensor: self.stand_ins.get(id(tensor), tensor),
            (args, dict(kwargs or {})),
        )
        return func(*args, **kwargs)


def substitute(
    originals: Sequence[Tensor], stand_ins: Sequence[Tensor]
) -> AbstractContextManager[object]:
    """A context in which operations that are given an original see its stand-in."""
    if not originals:
        return nullcontext()
    return _Substitution({id(o): s for o, s in zip(originals, stand_ins, strict=True)})


class Held:
    """Captured tensors, each held as a variable of its own.

    Intermediate results are replaced by detached copies while ``substituted()``: a gradient in them
    then neither runs into the graph they came from, nor counts a path through one of them again
    for another.
    """

    def __init__(self, captured: Sequence[Tensor]) -> None:
        """Hold the tensors that :func:`call_and_capture` found."""
        self.results = [tensor for tensor in captured if tensor.grad_fn is not None]
        self.copies = [tensor.detach().requires_grad_() for tensor in self.results]
        copies = iter(self.copies)
        own = [next(copies) if tensor.grad_fn is not None else tensor for tensor in captured]
        # A custom autograd.Function reads the result itself, not its copy: both are asked.
        self.variables = [*own, *self.results]
        self.places = [n for n, tensor in enumerate(captured) if tensor.grad_fn is not None]
        self.count = len(captured)

    def substituted(self) -> AbstractContextManager[object]:
        """A context in which operations see the copies."""
        return substitute(self.results, self.copies)

    def merge(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients in ``variables`` as gradients in the captured tensors."""
        merged = list(gradients[: self.count])
        for place, direct in zip(self.places, gradients[self.count :], strict=True):
            own = merged[place]
            merged[place] = direct if own is None else own if direct is None else own + direct
        return merged


def freeze_closure(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with what it closes over as it is now.

    A policy that evaluates the loss again in ``backward()`` must see the targets of its own call,
    although the caller's loop has moved on; and must not keep what the names refer to by then.
    """
    if torch.compiler.is_compiling():  # what is traced is not evaluated again
        return function
    if not isinstance(function, FunctionType) or not function.__closure__:
        return function
    try:
        cells = tuple(CellType(cell.cell_contents) for cell in function.__closure__)
    except ValueError:  # a name that is not bound yet
        return function
    frozen = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    frozen.__kwdefaults__ = function.__kwdefaults__
    return frozen


class RandomAndPrecision:
    """Random state and autocast of the moment: to evaluate a function twice alike."""

    def __init__(self, device: torch.device) -> None:
        """Remember the present state."""
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A context in which draws and precision are those of construction; restores afterwards."""
        devices = [self.device] if self.cuda is not None else []
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.autocast)
        with torch.random.fork_rng(devices=devices), autocast:
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
