"""Which tensors does a function use that it was not given? Policies with their own backward ask."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CellType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from metalearn.errors import ChangedLossError, MetalearnError
from metalearn.second_derivatives import is_older, is_own, next_node

HALF = (torch.float16, torch.bfloat16)
_ESCAPES = {
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
    *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__"),
    *("__contains__", "__format__"),
}
_OVERWRITES = {
    *("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"),
}


class Outside(NamedTuple):
    """A tensor that a function took from elsewhere, as it was then."""

    tensor: Tensor
    version: int
    address: int
    learns: bool

    @classmethod
    def now(cls, tensor: Tensor) -> Outside:
        """As it is at present."""
        try:
            return cls(tensor, tensor._version, tensor.data_ptr(), tensor.requires_grad)
        except RuntimeError:  # inference tensors have no version, some subclasses no address
            return cls(tensor, 0, 0, tensor.requires_grad)

    def unwritten(self) -> bool:
        """Whether it still holds what it held."""
        return self.version == Outside.now(self.tensor).version


Event = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...], bool, int, int]
"""An operation: what was called, its arguments other than tensors, where its tensors come from,
whether its result requires a gradient, its first result's number, and how many results it has."""

HIDDEN = 1 << 40
"""Where a tensor comes from that a compiled function made, unseen by the recorder."""


class Recorder(TorchFunctionMode):
    """Notes the operations of a function, and the tensors that none of them made.

    Every tensor that the function is given, and every result, has a number from 0 on; a tensor
    from outside has a place in :attr:`outside`, written as a negative number, ``-1 - place``.

    Args:
        given: What the function is given.
        expected: Tensors from outside that an earlier run of the function used.
        stand_ins: What operations see instead of certain tensors, by their ``id``.
    """

    def __init__(
        self,
        given: Sequence[Tensor],
        expected: Sequence[Outside] = (),
        stand_ins: Mapping[int, Tensor] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.given = len(given)
        self.events: list[Event] = []
        self.outside: list[Outside] = []
        self.escaped = False  # a value went to Python, which may decide what is called
        self.half: str | None = None  # first operation with a differentiable result in 16 bits
        self._stand_ins = stand_ins
        self._expected = {id(one.tensor) for one in expected}
        self.start = next_node()
        self._count = 0
        self._places: dict[int, int] = {}
        # References are weak, so that results are freed when the function drops them.
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        for tensor in given:
            self._number(tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note it."""
        if torch.compiler.is_compiling():  # dynamo traces modes: see `call_and_capture`
            return func(*args, **(kwargs or {}))
        constants: list[Any] = []
        origins: list[int] = []
        self._read(args, constants, origins)
        if kwargs:
            self._read((kwargs,), constants, origins)
        if self._stand_ins:
            args, kwargs = replaced(self._stand_ins, args, kwargs)
        result = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(result, Tensor):
            learns = result.requires_grad
            first = self._count
            if id(result) not in self._places or name_of(func) in _OVERWRITES:
                self._numbers[id(result)] = weakref.ref(result), first
                self._count = first + 1
            if learns and self.half is None and result.dtype in HALF:
                self.half = name_of(func)
            row = (func, tuple(constants), tuple(origins), learns, first, self._count - first)
            self.events.append(row)
        else:
            self._note(func, constants, origins, args, result)
        return result

    def origin(self, tensor: Tensor) -> int:
        """Where a tensor comes from."""
        known = self._numbers.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        place = self._places.get(id(tensor))
        if place is not None:
            return -1 - place
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # as of vmap: what is inside?
            return self.origin(torch._C._functorch.get_unwrapped(tensor))
        made = tensor.grad_fn is not None and not is_older(tensor.grad_fn, self.start)
        if made and id(tensor) not in self._expected:
            return HIDDEN
        self._places[id(tensor)] = len(self.outside)
        self.outside.append(Outside.now(tensor))  # held, so that the id stays unique
        return -len(self.outside)

    def _read(self, values: Iterable[Any], constants: list[Any], origins: list[int]) -> None:
        """Sort arguments, at any depth."""
        for value in values:
            if isinstance(value, Tensor):
                constants.append(Tensor)
                origins.append(self.origin(value))
            elif isinstance(value, (tuple, list)):
                constants.append(len(value))
                self._read(value, constants, origins)
            elif isinstance(value, dict):
                self._read(value, constants, origins)
                self._read(value.values(), constants, origins)
            else:
                constants.append(value)

    def _note(
        self,
        func: Callable[..., Any],
        constants: list[Any],
        origins: list[int],
        args: tuple[Any, ...],
        result: Any,
    ) -> None:
        """Note an operation that does not return one tensor."""
        name = name_of(func)
        if isinstance(result, (int, float, str)):
            self.escaped = self.escaped or name in _ESCAPES
            return
        if result is None and name.endswith("_"):  # __setitem__, _foreach_add_: it wrote to these
            result = args[:1]
        results = tensors_in(result)
        if not results:
            self.escaped = self.escaped or name in _ESCAPES
            return
        first, learns = self._count, False
        for tensor in results:
            learns = learns or tensor.requires_grad
            self._number(tensor)
        row = (func, tuple(constants), tuple(origins), learns, first, self._count - first)
        self.events.append(row)

    def _number(self, tensor: Tensor) -> None:
        if id(tensor) not in self._places:
            self._numbers[id(tensor)] = weakref.ref(tensor), self._count
            self._count += 1

    def __enter__(self) -> Recorder:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def close(self, result: Tensor) -> None:
        """Note the function's result, and forget what only matters while it runs."""
        self.result = self.origin(result)
        self._numbers, self._places, self._expected = {}, {}, set()


def call_and_capture(
    function: Callable[[Sequence[Tensor]], Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], Recorder]:
    """Call ``function(given)``; also return the tensors with gradient that it took from elsewhere.

    These are a module's parameters, and any intermediate result that a closure holds. Leaves that
    no operation in Python sees are found through the graph of the result: those of a compiled
    function, whose trace must not depend on the recorder, or it would be traced in every call.

    Returns:
        The result, those tensors, and a record of what was called.

    Raises:
        MetalearnError: if an ``autograd.Function``, as of a compiled decoder, takes an intermediate
            result that shares ancestors with the other captured tensors (see :class:`Held`).
    """
    recorder = Recorder(given)
    with recorder:
        result = function(given)
    recorder.close(result)
    start = recorder.start
    captured = [one.tensor for one in recorder.outside if one.learns]
    boundary = {tensor.grad_fn for tensor in captured} | {tensor.grad_fn for tensor in given}
    found = {id(tensor) for tensor in [*captured, *given]}
    leaves, taken = _leaves(result, boundary, start)
    for leaf in leaves:
        if id(leaf) not in found:
            found.add(id(leaf))
            captured.append(leaf)
    for node in taken:
        _refuse_shared_ancestors(node, captured)
    return result, captured, recorder


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
        opaque = isinstance(node, BackwardCFunction) and not is_older(node, start)
        opaque = opaque and not is_own(type(node))  # the recorder sees calls of ours
        for following, _ in node.next_functions:
            if following is None:
                continue
            if opaque and is_older(following, start):
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


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors of nested containers."""
    if isinstance(values, (tuple, list)) and not any(isinstance(x, (tuple, list)) for x in values):
        return [value for value in values if isinstance(value, Tensor)]
    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def name_of(func: Callable[..., Any]) -> str:
    """An operation's name; that of the attribute for a property."""
    name: str = getattr(func, "__name__", repr(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name in ("__get__", "__set__") else name


def replaced(
    stand_ins: Mapping[int, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with stand-ins for certain tensors."""
    found: tuple[tuple[Any, ...], dict[str, Any]] = _pytree.tree_map_only(
        Tensor, lambda tensor: stand_ins.get(id(tensor), tensor), (args, dict(kwargs or {}))
    )
    return found


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
        args, kwargs = replaced(self.stand_ins, args, kwargs)
        return func(*args, **kwargs)


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
        self.stand_ins = {
            id(result): copy for result, copy in zip(self.results, self.copies, strict=True)
        }
        for tensor in captured:
            if tensor.grad_fn is None and not tensor.requires_grad:
                raise ChangedLossError(
                    f"expected a tensor of shape {tuple(tensor.shape)} that the support loss uses "
                    "to require a gradient until backward() is done, got requires_grad=False; "
                    "freeze parameters after backward(), or use Unrolled()"
                )

    def substituted(self) -> AbstractContextManager[object]:
        """A context in which operations see the copies."""
        return _Substitution(self.stand_ins) if self.stand_ins else nullcontext()

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

    def dtypes(self) -> list[torch.dtype]:
        """What autocast computes in, if it is on."""
        return [self.dtype] if self.autocast else []

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
