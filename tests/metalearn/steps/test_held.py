"""A step size that is held: where it comes to rest, from both sides, in any units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn import HeldStepSize, LatentAdapter, NonFiniteLossError, Unrolled

Loss = Callable[[Tensor], Tensor]


def quadratic(latent: Tensor) -> Tensor:
    """``z^2``: a step of ``a`` leaves ``(1 - 2 a)^2`` of it, none at all at 0.5."""
    return latent.square().sum(1)


def settle(size: HeldStepSize, loss: Loss = quadratic, looks: int = 80, steps: int = 1) -> float:
    """Where the size comes to rest."""
    adapter = LatentAdapter(size, steps=steps)
    for _ in range(looks):
        size.observe(adapter, torch.tensor([[1.0], [-2.0]]), loss)
    return float(size(0, 0))


@pytest.mark.parametrize("reduction", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("initial", [1e-3, 0.05, 3.0, 1e4])
def test_it_rests_where_the_reduction_is_met(initial: float, reduction: float) -> None:
    """From far below, and from sizes so large that the loss explodes."""
    expected = (1 - (1 - reduction) ** 0.5) / 2
    found = settle(HeldStepSize(initial, reduction, rate=0.3), looks=150)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_units_do_not_count(scale: float) -> None:
    """The loss in other units: another size, the same reduction."""
    size = HeldStepSize(0.1, 0.2, rate=0.5)
    found = settle(size, lambda latent: scale * quadratic(latent), looks=120)
    assert found * scale == pytest.approx((1 - 0.8**0.5) / 2, rel=1e-3)


def test_of_several_steps_the_whole_reduction_counts() -> None:
    found = settle(HeldStepSize(1e-3, 0.5, rate=0.5), steps=3)
    assert (1 - 2 * found) ** 6 == pytest.approx(0.5, rel=1e-3)


def test_what_cannot_be_taken_off_leaves_the_size_near_the_best() -> None:
    """Half of this loss is constant: at most a half comes off, at 0.5; 4/3 of it is the bound."""
    for initial in (1e-3, 100.0):
        size = HeldStepSize(initial, 0.9, rate=0.1)
        found = settle(size, lambda latent: quadratic(latent) + 2.5, 200)
        assert 0.4 < found < 0.5 * 4 / 3 * 1.15


def test_infinite_losses_shrink_it() -> None:
    size = HeldStepSize(1.0, 0.5, rate=0.25)

    def loss(latent: Tensor) -> Tensor:
        return quadratic(latent) + torch.where(latent.abs().sum(1) > 2.5, torch.inf, 0.0)

    adapter = LatentAdapter(size)
    # At 1.0 a latent of 2 becomes -2; at 1.5 it is -4, where the loss is infinite.
    size.log_value.fill_(torch.tensor(1.5).log())
    size.observe(adapter, torch.tensor([[2.0]]), loss)
    assert float(size(0, 0)) == pytest.approx(1.5 * torch.tensor(-0.25).exp().item())
    with pytest.raises(NonFiniteLossError):  # before any step it is no matter of the size
        size.observe(adapter, torch.tensor([[4.0]]), loss)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_losses_of_zero_move_nothing(rate: float) -> None:
    """No share of nothing can be taken off; a later look moves it again."""
    size = HeldStepSize(0.25, 0.5, rate=rate)
    adapter = LatentAdapter(size)
    size.observe(adapter, torch.zeros(2, 3), quadratic)
    assert float(size(0, 0)) == pytest.approx(0.25)
    size.observe(adapter, torch.ones(2, 3), quadratic)
    assert 0 < float(size(0, 0)) != pytest.approx(0.25)


def test_losses_that_are_not_finite_before_a_step_are_named_by_any_adapter() -> None:
    size = HeldStepSize(0.25, 0.5)
    adapter = LatentAdapter(size, check_finite=False)
    with pytest.raises(NonFiniteLossError, match="before any step, got a sum of inf"):
        size.observe(adapter, torch.ones(1, 2), lambda z: z.sum(1) / 0)
    assert float(size(0, 0)) == pytest.approx(0.25)


def test_between_looks_it_is_a_constant_of_the_modules_state() -> None:
    size = HeldStepSize(0.25, 0.5)
    adapter = LatentAdapter(size, differentiation=Unrolled())
    z = torch.tensor([[1.0]], requires_grad=True)
    refined = adapter(z, quadratic).latent
    (slope,) = torch.autograd.grad(refined.sum(), z)
    assert refined.item() == pytest.approx(0.5)
    assert slope.item() == pytest.approx(1 - 2 * 0.25)
    assert not list(size.parameters())
    settle(size, looks=5)
    other = HeldStepSize(9.0, 0.5)
    other.load_state_dict(size.state_dict())
    assert float(other(0, 0)) == float(size(0, 0)) != 0.25
    assert "reduction=0.5" in repr(size)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.0, 0.5, 0.1), "a positive, finite initial step size, got 0"),
        ((float("inf"), 0.5, 0.1), "a positive, finite initial step size, got inf"),
        ((1.0, 0.0, 0.1), "a reduction between 0 and 1, got 0"),
        ((1.0, 1.0, 0.1), "a reduction between 0 and 1, got 1"),
        ((1.0, 0.5, 0.0), r"a rate in \(0, 1\], got 0"),
        ((1.0, 0.5, 1.5), r"a rate in \(0, 1\], got 1.5"),
    ],
)
def test_values_out_of_range(values: tuple[float, float, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HeldStepSize(values[0], values[1], rate=values[2])
