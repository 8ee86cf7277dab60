"""Attention without stored maps: computed in blocks, and again in every backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from metalearn.attention import plain_attention
from metalearn.checks import in_transform
from metalearn.norms import at_least_float32

BLOCK = 2**18
"""Elements of an attention map that are worked on at once: about what a core's cache holds.

Elsewhere than on a CPU 64 times as many: what counts there is how many operations are launched.
"""


def recomputed_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r""":func:`~metalearn.plain_attention` that keeps its arguments and no map.

    The maps :math:`P = \mathrm{softmax}(Q K^\top / \sqrt{d})` and their gradients grow with the
    product of both lengths. Here they exist for one block of examples or of queries at a time, in
    float32 at least, and every backward pass computes them again: the first takes one product of
    four more, the second two of ten. Differentiable any number of times; from the third derivative
    on, inside ``torch.func`` transforms and under ``torch.compile``, as plain attention.

    Args:
        query: ``(..., T, d)``.
        key: ``(..., S, d)``.
        value: ``(..., S, e)``.

    Returns:
        ``(..., T, e)``.

    Example:
        >>> import torch
        >>> from metalearn import plain_attention, recomputed_attention
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8)
        >>> torch.allclose(recomputed_attention(q, k, v), plain_attention(q, k, v), atol=1e-6)
        True
    """
    inputs = (query, key, value)
    if torch.compiler.is_compiling():
        return plain_attention(query, key, value)
    if has_torch_function(inputs):  # to recorders of calls this is one operation
        mixed: Tensor = handle_torch_function(recomputed_attention, inputs, *inputs)
        return mixed
    if in_transform():
        return plain_attention(query, key, value)
    leading = torch.broadcast_shapes(*(x.shape[:-2] for x in inputs))
    alike = [x.expand(*leading, *x.shape[-2:]) for x in inputs]
    if not leading:
        alike = [x.unsqueeze(0) for x in alike]
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        alike = [x.to(dtype) if x.dtype != torch.float64 else x for x in alike]
    mixed = _Attention.apply(*alike)  # type: ignore[no-untyped-call]
    return mixed if leading else mixed[0]


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the first axis and of the queries, such that a map fits the block."""
    size, length = query.shape[0], query.shape[-2]
    of_one = query[:1].numel() // max(query.shape[-1], 1) * key.shape[-2]  # elements of an example
    block = BLOCK if query.device.type == "cpu" else 64 * BLOCK
    examples = max(1, block // max(of_one, 1))
    rows = length if of_one <= block else max(1, length * block // of_one)
    for first in range(0, size, examples):
        for row in range(0, length, rows):
            yield slice(first, first + examples), slice(row, row + rows)


def _scores(scaled: Tensor, key: Tensor) -> Tensor:
    return at_least_float32(scaled @ key.transpose(-2, -1))


def _softmax_backward(cotangent: Tensor, maps: Tensor) -> Tensor:
    r""":math:`J_P(X) = P \circ (X - \mathrm{rowsum}(P \circ X))`."""
    result: Tensor = torch.ops.aten._softmax_backward_data(cotangent, maps, -1, maps.dtype)
    return result


class _Attention(torch.autograd.Function):
    """Attention, with the gradients below."""

    twice_differentiable = True  # see `second_derivatives.is_own`

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        scale = query.shape[-1] ** -0.5
        mixed = _laid_out(query, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            for some, rows in _blocks(query, key):
                maps = _scores(query[some, ..., rows, :] * scale, key[some]).softmax(-1)
                mixed[some, ..., rows, :] = maps.to(value.dtype) @ value[some]
        return mixed

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _AttentionGradient.apply(cotangent, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


def _laid_out(query: Tensor, width: int) -> Tensor:
    """Room for a result ``(B, H, T, width)``, in memory (B, T, H, width): heads side by side."""
    if query.ndim != 4:
        return query.new_empty(*query.shape[:-1], width)
    size, heads, length, _ = query.shape
    return query.new_empty(size, length, heads, width).transpose(1, 2)


class _AttentionGradient(torch.autograd.Function):
    r"""Gradients of attention, with a derivative of their own.

    With :math:`P` the maps, :math:`g` the cotangent, :math:`D = g V^\top` and the softmax's
    derivative :math:`J_P(X) = P \circ (X - \mathrm{rowsum}(P \circ X))`: the gradient of the
    scores is :math:`E = J_P(D)`, those of the arguments :math:`sEK`, :math:`sE^\top Q`,
    :math:`P^\top g`.
    """

    twice_differentiable = True

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Any:
        ctx.save_for_backward(cotangent, query, key, value)
        scale, dtype = query.shape[-1] ** -0.5, query.dtype
        of_query = _laid_out(query, query.shape[-1])
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        with torch.autocast(query.device.type, enabled=False):
            for some, rows in _blocks(query, key):
                scaled, g = query[some, ..., rows, :] * scale, cotangent[some, ..., rows, :]
                maps = _scores(scaled, key[some]).softmax(-1)
                of_value[some] += maps.to(dtype).transpose(-2, -1) @ g
                of_scores = _softmax_backward(_scores(g, value[some]), maps).to(dtype)
                of_query[some, ..., rows, :] = (of_scores @ key[some]) * scale
                of_key[some] += of_scores.transpose(-2, -1) @ scaled
        return of_query, of_key, of_value

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> Any:
        """Pull back cotangents of the gradients in query, key and value."""
        given: tuple[Tensor, Tensor, Tensor, Tensor] = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative is asked for
            return _differentiable(given, (u, v, w))
        return _pull_back(*given, u, v, w)


def _pull_back(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, u: Tensor, v: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Cotangents of ``g``, query, key and value.

    :math:`A = s(uK^\top + Qv^\top)` is that of :math:`E`, and :math:`B = J_P(A)` that of
    :math:`D`. With the row sums :math:`\alpha` of :math:`P \circ A`, and what is constant in a row
    left out, as :math:`J_P` maps it to zero, that of the scores is :math:`C = Y - P\,
    \mathrm{rowsum}(Y)` with :math:`Y = (A - \alpha) \circ E + P \circ gw^\top`.
    """
    scale, dtype = query.shape[-1] ** -0.5, query.dtype
    of_g, of_query = _laid_out(g, g.shape[-1]), _laid_out(query, query.shape[-1])
    of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
    with torch.autocast(query.device.type, enabled=False):
        for some, rows in _blocks(query, key):
            k, x, y, z = key[some], value[some], v[some], w[some]
            scaled, c = query[some, ..., rows, :] * scale, g[some, ..., rows, :]
            d = u[some, ..., rows, :] * scale
            maps = _scores(scaled, k).softmax(-1)
            of_scores = _softmax_backward(_scores(c, x), maps)  # E
            direct = _scores(torch.cat([d, scaled], -1), torch.cat([k, y], -1))  # A
            direct.sub_((maps * direct).sum(-1, keepdim=True))
            curved = _scores(c, z).mul_(maps).addcmul_(direct, of_scores)  # Y
            curved.addcmul_(maps, curved.sum(-1, keepdim=True), value=-1)  # C
            through = direct.mul_(maps).to(dtype)  # B
            of_scores, curved, maps = of_scores.to(dtype), curved.to(dtype), maps.to(dtype)
            of_g[some, ..., rows, :] = through @ x + maps @ z
            of_value[some] += through.transpose(-2, -1) @ c
            of_query[some, ..., rows, :] = (of_scores @ y + curved @ k) * scale
            of_key[some] += of_scores.transpose(-2, -1) @ d + curved.transpose(-2, -1) @ scaled
    return of_g, of_query, of_key, of_value


def _differentiable(given: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Any:
    """The same by autograd, through plain attention."""
    g, *inputs = given
    copies = [x if x.requires_grad else x.detach().requires_grad_() for x in (g, *inputs)]
    copies = [x.view_as(x) for x in copies]
    mixed = plain_attention(*copies[1:])
    gradients = torch.autograd.grad(mixed, copies[1:], copies[0], create_graph=True)
    return torch.autograd.grad(gradients, copies, cotangents, create_graph=True)
