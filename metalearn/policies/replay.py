"""Is what a backward pass evaluates again what the forward pass evaluated?

A policy that calls the support loss a second time reads whatever its names, modules and buffers
hold by then. :func:`refuse_changed_calls` compares the operations of the two calls: what was
called, with which numbers, on which tensors. That finds a difference even where losses and
gradients happen to agree. :func:`refuse_changed_values` compares the losses and gradients: that
finds what no operation in Python shows, as inside compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import ChangedLossError
from metalearn.inner import InnerLoop
from metalearn.policies.capture import HIDDEN, Event, Outside, Recorder, name_of
from metalearn.pytrees import flat_tasks

_PLAIN = (int, float, complex, str, bytes, slice, torch.dtype, torch.device, type(None), type(...))
_STATISTICS = ("batch_norm", "instance_norm")


def refuse_changed_calls(
    policy: object, first: Recorder, again: Recorder, *, nearby: bool = False
) -> None:
    """Compare the operations of two calls of a support loss.

    Differences that no result depends on (a counter, running statistics of a normalisation in
    training) are let pass, as is a constant that is computed once and then kept.

    Args:
        policy: Whose backward pass it is.
        first: The call of the forward pass.
        again: The call of the backward pass.
        nearby: Whether that was at another latent, so that computed values differ a little.

    Raises:
        ChangedLossError: naming the first operation that differs.
    """
    same = _unchanged(first.outside, again.outside)
    if same and _equal(first.events, again.events) and first.result == again.result:
        return
    cause = _Comparison(first, again, nearby).cause()
    if cause is not None:
        raise _changed(policy, cause)


def refuse_changed_values(
    policy: object,
    inner: InnerLoop,
    losses: tuple[Tensor, Tensor],
    gradients: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
    dtypes: Sequence[torch.dtype] = (),
) -> None:
    """Compare losses ``(B,)``, and gradients, found first and again at the same latent.

    Equal to rounding, in the least precise of ``dtypes``: a kernel may add in another order.

    Raises:
        ChangedLossError: naming the tasks.
    """
    if inner.device.type != "cpu" and not inner.check_finite:  # no synchronisation was asked for
        return
    pairs = [losses, *zip(*gradients, strict=True)]
    if all(torch.equal(a, b) for a, b in pairs):
        return
    eps = max(torch.finfo(dtype).eps for dtype in (*dtypes, *(a.dtype for a, _ in pairs)))
    differs = torch.stack([_differs(a.detach(), b.detach(), eps) for a, b in pairs]).any(0)
    if not bool(differs.any()):
        return
    task = int(differs.nonzero()[0])
    a, b = (side.detach()[task].item() for side in losses)
    what = f"a support loss of {b:.6g}, in the forward pass {a:.6g}"
    if a == b:
        what = f"another gradient at an equal support loss of {a:.6g}"
    shown = differs.nonzero().flatten().add(inner.first_task).tolist()[:5]
    raise _changed(policy, f"{what}, in {int(differs.sum())} tasks (index {shown})")


def _differs(first: Tensor, again: Tensor, eps: float) -> Tensor:
    """Which tasks differ by more than rounding, ``(B,)``: relative to the task's largest value."""
    a, b = flat_tasks(first), flat_tasks(again)
    if a.shape[1] == 0:
        return a.new_zeros(len(a), dtype=torch.bool)
    largest = torch.maximum(a.abs(), b.abs()).amax(1)
    ordinary = largest.isfinite()
    off = torch.where(a == b, 0.0, (a - b).abs()).amax(1)
    close = off <= eps**0.5 * largest
    return torch.where(ordinary, ~close, ~torch.isclose(a, b, equal_nan=True).all(1))


def _changed(policy: object, cause: str) -> ChangedLossError:
    return ChangedLossError(
        f"expected the support loss to be what it was in the forward pass, as {policy} evaluates "
        f"it again in the backward pass; got {cause}. Call backward() before its names, modules "
        "and buffers change, hand them over as values (a function's arguments, functools.partial) "
        "or use Unrolled(), which evaluates it once"
    )


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # arrays and tensors have no single truth value
        return False


def _unchanged(first: Sequence[Outside], again: Sequence[Outside]) -> bool:
    if len(first) != len(again):
        return False
    return all(
        a[0] is b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]
        for a, b in zip(first, again, strict=True)
    )


class _Comparison:
    """A look at two records that differ: does it matter, and what is it?"""

    def __init__(self, first: Recorder, again: Recorder, nearby: bool) -> None:
        self.first, self.again, self.nearby = first, again, nearby
        self.lenient = first.escaped or again.escaped
        hidden = any(HIDDEN in event[2] for event in first.events)
        self.computed = self.lenient or hidden  # constants may depend on the latent, unseen
        self.spoilt: dict[int, str] = {}  # results that differ, and why
        self.looked: dict[tuple[int, int], str | None] = {}

    def cause(self) -> str | None:
        """What differs and matters."""
        called, called_again = [e[0] for e in self.first.events], [e[0] for e in self.again.events]
        if _equal(called, called_again):
            return self._aligned()
        learned, again = ([e for e in r.events if e[3]] for r in (self.first, self.again))
        if not _equal([e[0] for e in learned], [e[0] for e in again]):
            return None if self.lenient and self.nearby else _other_operation(learned, again)
        # Operations on constants alone differ: they may have been kept from the first call.
        causes = (self._event(a, b, aligned=False) for a, b in zip(learned, again, strict=True))
        return next((cause for cause in causes if cause is not None), None)

    def _aligned(self) -> str | None:
        for a, b in zip(self.first.events, self.again.events, strict=True):
            cause = self._event(a, b, aligned=True)
            if cause is None:
                continue
            if a[3]:
                return cause
            for number in range(a[4], a[4] + a[5]):
                self.spoilt[number] = cause
        return self.spoilt.get(self.first.result)

    def _event(self, a: Event, b: Event, *, aligned: bool) -> str | None:
        """Why the results of two events may differ."""
        if len(a[1]) != len(b[1]) or len(a[2]) != len(b[2]):
            return f"other arguments of {name_of(a[0])}"
        name, running = name_of(a[0]), _statistics(a) and _statistics(b)
        for x, y in zip(a[1], b[1], strict=True):
            if not (running or self._same_constant(x, y)):
                return f"{y!r} as an argument of {name}, in the forward pass {x!r}"
        for place, (x, y) in enumerate(zip(a[2], b[2], strict=True)):
            if x < 0 and (place == 0 and name.endswith("_")):
                continue  # it is only written to
            if x < 0 and running and not self.first.outside[-1 - x].learns:
                continue
            cause = self._origin(x, y, aligned=aligned)
            if cause is not None:
                return f"{cause} in {name}"
        return None

    def _same_constant(self, x: Any, y: Any) -> bool:
        if x is y or not isinstance(x, _PLAIN) or not isinstance(y, _PLAIN):
            return x is y or type(x) is type(y)
        if _equal(x, y) or (x != x and y != y):
            return True
        if not (self.lenient and isinstance(x, float) and isinstance(y, float)):
            return False
        return self.nearby or abs(x - y) <= 1e-4 * max(abs(x), abs(y))

    def _origin(self, x: int, y: int, *, aligned: bool) -> str | None:
        if x < 0 and y < 0:
            return self._outside(-1 - x, -1 - y)
        if y < 0 and self.again.outside[-1 - y].learns:
            return "a tensor with a gradient that was not there in the forward pass"
        if x < 0 and y == HIDDEN and self.first.outside[-1 - x].learns:
            return "another tensor than in the forward pass"
        if not aligned or HIDDEN in (x, y):
            return None
        return self.spoilt.get(x) if x == y else "another tensor than in the forward pass"

    def _outside(self, x: int, y: int) -> str | None:
        if (x, y) not in self.looked:
            tolerance = (0.1 if self.nearby else 1e-4) if self.computed else 0.0
            self.looked[x, y] = _difference(self.first.outside[x], self.again.outside[y], tolerance)
        return self.looked[x, y]


def _statistics(event: Event) -> bool:
    """Whether an event is a normalisation in training: its running statistics do not matter."""
    function, constants, _, _, _, _ = event
    if name_of(function) not in _STATISTICS:
        return False
    flags = {"training", "use_input_stats"} & {c for c in constants if isinstance(c, str)}
    return bool(flags) and True in [c for c in constants if isinstance(c, bool)]


def _difference(a: Outside, b: Outside, tolerance: float) -> str | None:
    """Why a tensor from outside is not what it was."""
    shape = tuple(b.tensor.shape)
    if a.tensor is b.tensor:
        if a.learns != b.learns:
            return f"a tensor of shape {shape} with requires_grad={b.learns}"
        written = a.version != b.version or a.address != b.address
        return f"a tensor of shape {shape} that was written to in between" if written else None
    if not (a.learns or b.learns) and a.unwritten() and _alike(a, b, tolerance):
        return None  # made anew in every call
    return f"another tensor of shape {shape}"


def _alike(a: Outside, b: Outside, tolerance: float) -> bool:
    x, y = a.tensor, b.tensor
    if (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    return torch.allclose(x, y, rtol=tolerance, atol=0.0, equal_nan=True)


def _other_operation(first: Sequence[Event], again: Sequence[Event]) -> str:
    for a, b in zip(first, again, strict=False):
        if a[0] != b[0]:
            return f"a call of {name_of(b[0])}, in the forward pass one of {name_of(a[0])}"
    return f"{len(again)} operations, in the forward pass {len(first)}"
