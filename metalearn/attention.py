"""Plain attention: differentiable any number of times, on any device, in any dtype."""

from __future__ import annotations

from torch import Tensor


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Scaled dot-product attention as matrix products and a softmax.

    .. math:: \mathrm{softmax}\big(Q K^\top / \sqrt{d}\big)\, V

    The same function as ``torch.nn.functional.scaled_dot_product_attention`` without mask and
    dropout, whose fused kernels have no second derivative. The scale is folded into the query,
    which is smaller than the scores.

    Args:
        query: ``(..., T, d)``.
        key: ``(..., S, d)``.
        value: ``(..., S, e)``.

    Returns:
        ``(..., T, e)``.

    Example:
        >>> import torch
        >>> from metalearn import plain_attention
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8)
        >>> fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        >>> torch.allclose(plain_attention(q, k, v), fused, atol=1e-6)
        True
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed
