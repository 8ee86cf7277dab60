"""`plain_attention`: the fused kernel's function, with derivatives of every order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from metalearn import plain_attention


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradient_are_those_of_the_fused_kernel(
    leading: list[int], sizes: tuple[int, int, int, int], seed: int
) -> None:
    """Any leading axes; queries, keys and values of their own lengths and widths."""
    targets, sources, width, out = sizes
    inputs = [
        random(*leading, targets, width, seed=seed).requires_grad_(),
        random(*leading, sources, width, seed=seed + 1).requires_grad_(),
        random(*leading, sources, out, seed=seed + 2).requires_grad_(),
    ]
    plain, fused = plain_attention(*inputs), F.scaled_dot_product_attention(*inputs)
    assert plain.shape == (*leading, targets, out)
    torch.testing.assert_close(plain, fused)
    received = torch.autograd.grad(plain.sin().sum(), inputs)
    torch.testing.assert_close(received, torch.autograd.grad(fused.sin().sum(), inputs))


def test_leading_axes_broadcast() -> None:
    """One set of keys and values may serve many queries."""
    query, key, value = random(4, 2, 3, 5), random(2, 6, 5, seed=1), random(1, 6, 5, seed=2)
    expected = torch.stack(
        [
            torch.stack([plain_attention(query[a, b], key[b], value[0]) for b in range(2)])
            for a in range(4)
        ]
    )
    torch.testing.assert_close(plain_attention(query, key, value), expected)


def test_first_and_second_derivatives_match_finite_differences() -> None:
    """Which the fused kernel does not have: its second derivative is an error."""
    inputs = [random(2, 3, 2, seed=i).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(plain_attention, inputs)
    assert torch.autograd.gradgradcheck(plain_attention, inputs)

    heads = random(1, 1, 3, 2).requires_grad_()
    fused = F.scaled_dot_product_attention(heads, heads, heads)
    (gradient,) = torch.autograd.grad(fused.square().sum(), heads, create_graph=True)
    with pytest.raises(RuntimeError, match="is not implemented"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_is_kept(dtype: torch.dtype) -> None:
    """And large scores do not overflow the softmax."""
    query, key, value = (5 * random(2, 2, 4, 8, seed=i) for i in range(3))
    received = plain_attention(query.to(dtype), key.to(dtype), value.to(dtype))
    assert received.dtype == dtype
    assert received.isfinite().all()
    if dtype == torch.float32:
        expected = F.scaled_dot_product_attention(query, key, value).float()
        torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)


def test_one_key_returns_its_value_and_equal_keys_the_mean() -> None:
    """The two cases that need no arithmetic."""
    query, value = random(2, 3, 4), random(2, 5, 4, seed=1)
    single = plain_attention(query, random(2, 1, 4, seed=2), value[:, :1])
    torch.testing.assert_close(single, value[:, :1].expand(2, 3, 4))
    same = plain_attention(query, random(2, 1, 4, seed=2).expand(2, 5, 4), value)
    torch.testing.assert_close(same, value.mean(1, keepdim=True).expand(2, 3, 4))
