"""Results that are cheap to compute again, and so need not be kept for the backward pass.

The exact gradient through an inner step keeps two graphs: that of the support loss, and that of its
gradient. Much of both is results of elementwise operations and norms whose inputs are kept as well.
Inside :func:`recomputing`, what autograd would save of a result of :func:`recomputed` is replaced
by how to compute it: the same numbers to the bit, for one more call of the operation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from metalearn.checks import in_transform


@dataclass(frozen=True, slots=True)
class _Saved:
    """A tensor that is kept, and how often it had been written to."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Saved:
        return cls(tensor.detach(), tensor._version)

    def value(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "expected a tensor needed for the gradient to keep its values, got one of shape "
                f"{tuple(self.tensor.shape)} that has been modified by an inplace operation; "
                "let it work on a copy"
            )
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to compute a result again, and which view of it was saved."""

    function: Callable[..., Tensor]
    inputs: tuple[_Saved, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def value(self) -> Tensor:
        with torch.no_grad():
            result = self.function(*(one.value() for one in self.inputs))
        return result.as_strided(self.shape, self.stride, self.offset)


@dataclass
class _Recipes:
    """Results by their memory. They are held until the graph is complete, so no address is reused.

    What was written to since is saved as any other tensor.
    """

    made: dict[int, tuple[Tensor, int, Callable[..., Tensor], tuple[_Saved, ...]]] = field(
        default_factory=dict
    )
    closed: bool = False

    def add(self, result: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        if self.closed:
            return
        saved = tuple(_Saved.of(one) for one in inputs)
        result = result.detach()
        self.made[result.untyped_storage()._cdata] = result, result._version, function, saved

    def pack(self, tensor: Tensor) -> _Saved | _Recipe:
        known = self.made.get(tensor.untyped_storage()._cdata)
        if known is None or known[0]._version != known[1]:
            return _Saved.of(tensor)
        _, _, function, inputs = known
        return _Recipe(function, inputs, tensor.shape, tensor.stride(), tensor.storage_offset())


def _unpack(packed: _Saved | _Recipe) -> Tensor:
    return packed.value()


class _Active(threading.local):
    recipes: _Recipes | None = None


_active = _Active()


@contextmanager
def recomputing() -> Iterator[None]:
    """A context whose graphs hold how to compute results of :func:`recomputed`, not the results.

    Nothing changes inside a ``torch.func`` transform, under ``torch.compile``, which decides itself
    what to keep, and inside other hooks of saved tensors, such as those of activation
    checkpointing: torch knows only the innermost ones.
    """
    if in_transform() or not _unhooked():
        yield
        return
    before, recipes = _active.recipes, _Recipes()
    _active.recipes = recipes
    try:
        with saved_tensors_hooks(recipes.pack, _unpack):
            yield
    finally:
        _active.recipes = before
        recipes.closed = True
        recipes.made.clear()


def _unhooked() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: True)
    return top(False) is None


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, which inside :func:`recomputing` is computed again where it is needed.

    Args:
        function: Depends on its arguments and on constants alone, and is cheap. Parameters that it
            uses must be arguments or stay as they are until the backward pass is done.
        inputs: Kept in place of the result; worth it where they are kept anyway.
    """
    result = function(*inputs)
    recipes = _active.recipes
    mixed = torch.is_autocast_enabled(result.device.type)
    if recipes is not None and torch.is_grad_enabled() and not mixed:
        recipes.add(result, function, *inputs)
    return result


def gelu(values: Tensor) -> Tensor:
    """``torch.nn.functional.gelu``, of which the value and the gradient are :func:`recomputed`."""
    recipes = _active.recipes
    mixed = torch.is_autocast_enabled(values.device.type)
    if recipes is None or in_transform() or not values.requires_grad or mixed:
        return F.gelu(values)
    result: Tensor = _Gelu.apply(values, recipes)  # type: ignore[no-untyped-call]
    recipes.add(result, F.gelu, values)
    return result


class _Gelu(torch.autograd.Function):
    """Hands its gradient to the recipes; made of torch's differentiable operations."""

    twice_differentiable = True

    @staticmethod
    def forward(ctx: Any, values: Tensor, recipes: _Recipes) -> Tensor:
        ctx.recipes = recipes
        ctx.save_for_backward(values)
        return F.gelu(values)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        gradient = torch.ops.aten.gelu_backward(cotangent, values)
        if torch.is_grad_enabled():  # of the inner step, which is differentiated again
            ctx.recipes.add(gradient, torch.ops.aten.gelu_backward, cotangent, values)
        return gradient, None
