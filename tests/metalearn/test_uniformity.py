"""Uniformity: closed forms, what it ignores, its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn import uniformity


def test_closed_forms() -> None:
    line = torch.tensor([[1.0, 2.0], [-2.0, -4.0], [0.5, 1.0]])
    torch.testing.assert_close(uniformity(line), torch.tensor(1.0))  # opposite counts as equal
    assert uniformity(torch.eye(5)).item() == 0
    angles = torch.arange(3) * torch.pi / 3  # a frame of three lines: the least there is
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(uniformity(frame), torch.tensor((3 - 2) / (2 * 2)))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 6),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
    scale=st.floats(0.1, 9),
)
def test_scale_and_sign_of_a_row_do_not_count(
    rows: int, width: int, seed: int, scale: float
) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()
    factors = torch.full((rows, 1), scale).double()
    factors[0] = -factors[0]
    value = uniformity(x)
    torch.testing.assert_close(uniformity(factors * x), value)
    assert (rows - width) / (width * (rows - 1)) - 1e-9 <= value <= 1 + 1e-9


def test_its_gradient_and_its_precision() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(uniformity, (x,))
    assert torch.autograd.gradgradcheck(uniformity, (x,))
    assert uniformity(x.detach().half()).dtype == torch.float32
    with torch.autocast("cpu"):
        assert uniformity(x.detach().float()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 2, 2)])
def test_rows_are_two_or_more(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected rows \(B, D\) with B >= 2"):
        uniformity(torch.ones(shape))
