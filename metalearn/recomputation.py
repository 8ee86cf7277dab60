"""Results that are cheap to compute again, and so need not be kept for the backward pass.

The exact gradient through an inner step keeps two graphs: that of the support loss, and that of its
gradient. Much of both is results of elementwise operations and norms whose inputs are kept as well.
A policy with ``recompute=True`` keeps how to compute the results of :func:`recomputed` and of
:func:`recomputed_gelu`: the same numbers to the bit, for more calls of the operation.
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
from torch.overrides import handle_torch_function, has_torch_function

from metalearn.checks import in_transform


@dataclass(frozen=True, slots=True)
class _Saved:
    """A tensor that is kept, and how often it had been written to: hooks do not check that."""

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
                "let that work on a copy"
            )
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to compute a result again, and which view of it was saved."""

    function: Callable[..., Tensor]
    inputs: tuple[_Saved, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    def value(self) -> Tensor:
        with torch.no_grad():
            result = self.function(*(one.value() for one in self.inputs))
        return result.as_strided(self.shape, self.stride, self.offset)


@dataclass(slots=True)
class _Recipes:
    """Results by their memory; they are held until the graph is complete, so none is reused."""

    made: dict[int, tuple[_Saved, Callable[..., Tensor], tuple[_Saved, ...]]] = field(
        default_factory=dict
    )
    complete: bool = False

    def add(self, result: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        if not self.complete:
            saved = tuple(_Saved.of(one) for one in inputs)
            self.made[_memory(result)] = _Saved.of(result), function, saved

    def pack(self, tensor: Tensor) -> _Saved | _Recipe:
        known = self.made.get(_memory(tensor)) if tensor.layout is torch.strided else None
        if known is None or known[0].version != tensor._version:
            return _Saved.of(tensor)
        _, function, inputs = known
        return _Recipe(function, inputs, tensor.shape, tensor.stride(), tensor.storage_offset())


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


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
        recipes.complete = True
        recipes.made.clear()


def _unhooked() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: True)
    return top(False) is None


def _recipes(values: Tensor) -> _Recipes | None:
    """Where to note a result of ``values``; autocast's own casts are kept as they are."""
    if _active.recipes is None or in_transform() or not torch.is_grad_enabled():
        return None
    mixed = torch.is_autocast_enabled(values.device.type)
    return None if mixed else _active.recipes


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, whose result a policy with ``recompute=True`` need not keep.

    Worth it for cheap functions of what is kept anyway, such as norms. Anywhere else it is the
    plain call.

    Args:
        function: Depends on its arguments and constants alone: weights are arguments too.
        inputs: Must not be written to before the backward pass; that is an error.

    Returns:
        The result.

    Example:
        >>> import torch
        >>> from metalearn import LatentAdapter, Unrolled, recomputed
        >>> adapter = LatentAdapter(0.25, differentiation=Unrolled(recompute=True))
        >>> z, w = torch.ones(1, 1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> adapter(z, lambda z: (recomputed(torch.sin, z) * w).sum(1)).latent.sum().backward()
        >>> torch.allclose(w.grad, -0.25 * torch.ones(1).cos())
        True
    """
    if torch.compiler.is_compiling():
        return function(*inputs)
    if has_torch_function(inputs):  # to recorders of calls this is one operation
        result: Tensor = handle_torch_function(recomputed, inputs, function, *inputs)
        return result
    result = function(*inputs)
    recipes = _recipes(result)
    if recipes is not None:
        recipes.add(result, function, *inputs)
    return result


def recomputed_gelu(values: Tensor) -> Tensor:
    """``torch.nn.functional.gelu``, of which value and gradient are :func:`recomputed`.

    Example:
        >>> import torch
        >>> from metalearn import recomputed_gelu
        >>> recomputed_gelu(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.8413])
    """
    if torch.compiler.is_compiling():
        return F.gelu(values)
    if has_torch_function((values,)):
        result: Tensor = handle_torch_function(recomputed_gelu, (values,), values)
        return result
    recipes = _recipes(values)
    if recipes is None or not values.requires_grad:
        return F.gelu(values)
    result = _Gelu.apply(values, recipes)  # type: ignore[no-untyped-call]
    recipes.add(result, F.gelu, values)
    return result


class _Gelu(torch.autograd.Function):
    """Notes its gradient too; the gradient is torch's own operation, with all its derivatives."""

    twice_differentiable = True  # see `second_derivatives.is_own`

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
