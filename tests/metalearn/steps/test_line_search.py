"""The line search: never uphill, every task for itself, exact derivatives at constant shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn import (
    Checkpointed,
    ClipGradient,
    ElementwiseStepSize,
    FiniteDifference,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    LineSearch,
    Momentum,
    NormaliseGradient,
    SettingError,
    Unrolled,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def landscape(z: Tensor) -> Tensor:
    """A loss with hills and valleys in every direction."""
    return (3 * (2 * z).sin() + 0.1 * z * z.roll(1, dims=-1)).flatten(1).sum(1)


def searched_alone(z: Tensor, size: float, shrink: float, decrease: float, trials: int) -> Tensor:
    """One step of one task, written out."""
    z = z.clone().requires_grad_()
    before = landscape(z[None])[0]
    (slope,) = torch.autograd.grad(before, z)
    for number in range(trials):
        share = shrink**number
        moved = z - size * share * slope
        fall = decrease * size * share * slope.square().sum()
        if landscape(moved[None])[0] <= before - fall:
            return moved.detach()
    return z.detach()


@pytest.mark.parametrize(("size", "shrink", "decrease", "trials"), [
    (4.0, 0.5, 1e-4, 10),
    (0.7, 0.3, 0.5, 4),
    (50.0, 0.5, 0.1, 3),
])  # fmt: skip
def test_every_task_takes_the_first_share_that_is_enough(
    size: float, shrink: float, decrease: float, trials: int
) -> None:
    """As the same written out for one task, over several steps, some of which find nothing."""
    rule = LineSearch(shrink=shrink, decrease=decrease, trials=trials)
    found = LatentAdapter(size, steps=3, update=rule)(random(6, 4), landscape).latent
    for task, z in enumerate(random(6, 4)):
        for _ in range(3):
            z = searched_alone(z, size, shrink, decrease, trials)
        torch.testing.assert_close(found[task], z, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1e-3, 1e4),
    st.integers(0, 1000),
    st.sampled_from([None, Momentum(0.9)]),
    st.integers(1, 4),
)
def test_no_support_loss_ever_rises(
    size: float, seed: int, then: Momentum | None, steps: int
) -> None:
    """Not by a huge step size, and not by momentum, which may point uphill."""
    adapter = LatentAdapter(size, steps=steps, update=LineSearch(then=then))
    losses = adapter(random(3, 2, 2, seed=seed), landscape, final_loss=True).losses
    assert (losses.diff(dim=0) <= 0).all()


def test_a_task_without_an_acceptable_trial_stays() -> None:
    """The others move."""
    slopes = torch.tensor([[1.0, 1.0], [1e6, 1.0]])
    adapter = LatentAdapter(1.0, update=LineSearch(trials=2))
    start = torch.ones(2, 2)
    moved = adapter(start, lambda z: 0.5 * (slopes * z * z).sum(1)).latent
    assert torch.equal(moved[1], start[1])
    assert torch.equal(moved[0], torch.zeros(2))


@pytest.mark.parametrize("then", [None, Momentum(0.9)], ids=str)
def test_a_task_with_an_infinite_gradient_stays(then: Momentum | None) -> None:
    """In every step; sqrt has one at 0, where its value is finite."""
    start = torch.tensor([[0.0], [4.0]])
    adapter = LatentAdapter(1.0, steps=2, update=LineSearch(then=then))
    moved = adapter(start, lambda z: z.sqrt().sum(1)).latent
    first = 4 - 0.5 / 2
    slope = 0.5 / first**0.5 + (0.9 * 0.25 if then else 0)
    torch.testing.assert_close(moved, torch.tensor([[0.0], [first - slope]]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda search: ClipGradient(1.0, then=search),
        lambda search: NormaliseGradient(then=search),
        lambda search: LineSearch(then=search),
    ],
    ids=["clip", "normalise", "search"],
)
def test_a_search_within_another_rule_is_refused(wrap: Callable[[LineSearch], object]) -> None:
    """It would search for nothing; the other way round every step is searched."""
    with pytest.raises(SettingError, match=r"put the search outermost: LineSearch\(then="):
        wrap(LineSearch())
    steep = torch.tensor([[1.0], [10.0]])
    adapter = LatentAdapter(9.0, update=LineSearch(then=NormaliseGradient()))
    losses = adapter(
        torch.ones(2, 1), lambda z: 0.5 * (steep * z * z).sum(1), final_loss=True
    ).losses
    assert (losses[1] < losses[0]).all()


def test_losses_that_are_not_finite_are_too_far() -> None:
    """Of a barrier at 1, and of a loss that is NaN beyond it."""
    adapter = LatentAdapter(8.0, update=LineSearch())
    for barrier in (lambda z: -(1 - z).log().sum(1) - 2 * z.sum(1), lambda z: z.sqrt().sum(1)):
        result = adapter(torch.full((1, 1), 0.25), barrier, final_loss=True)
        assert result.losses.isfinite().all()
        assert result.losses[1] < result.losses[0]


@pytest.mark.parametrize(
    "policy", [Unrolled(), Checkpointed(), FiniteDifference()], ids=lambda p: type(p).__name__
)
def test_outer_gradients_are_those_of_the_steps_taken(policy: GradientPolicy) -> None:
    """Shares are constants: of the latent, of the step size, and of what the loss captures."""
    tilt = random(4, seed=1).requires_grad_()
    latent = random(3, 4).requires_grad_()
    size = LearnedStepSize(2.0, channels=4).double()

    def loss(z: Tensor) -> Tensor:
        return landscape(z) + (tilt * z * z).sum(1)

    adapter = LatentAdapter(size, steps=2, differentiation=policy, update=LineSearch())
    adapter(latent, loss).latent.square().sum().backward()
    wanted = [x.grad.clone() for x in (latent, tilt, *size.parameters()) if x.grad is not None]
    for x in (latent, tilt, *size.parameters()):
        x.grad = None

    current = latent
    for _ in range(2):
        before = loss(current)
        (slope,) = torch.autograd.grad(before.sum(), current, create_graph=True)
        shares = []
        for task in range(3):
            share = 1.0
            while True:
                step = share * size(0, 0).detach() * slope[task].detach()
                moved = current.detach().clone()
                moved[task] -= step
                fall = 1e-4 * (slope[task].detach() * step).sum()
                if loss(moved)[task] <= before[task] - fall:
                    break
                share /= 2
            shares.append(share)
        current = current - torch.tensor(shares, dtype=torch.float64)[:, None] * size(0, 0) * slope
    current.square().sum().backward()
    assert min(shares) < 1, "nothing was shortened: the test would not see a lost share"
    found = [x.grad for x in (latent, tilt, *size.parameters())]
    for got, expected in zip(wanted, found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_it_traces_and_transforms() -> None:
    """Under torch.func all trials are made, and the result is the same."""
    adapter = LatentAdapter(4.0, update=LineSearch())
    latent = random(3, 4)

    def outer(z: Tensor) -> Tensor:
        return adapter(z, landscape).latent.square().sum()

    start = latent.clone().requires_grad_()
    outer(start).backward()
    torch.testing.assert_close(torch.func.grad(outer)(latent), start.grad)


def test_other_sizes_leaves_and_losses_that_write() -> None:
    """Elementwise sizes of a pytree, one of whose leaves has no axis but the tasks'."""
    latent = {"a": random(3, 2, 2), "b": random(3, seed=1)}

    def loss(z: dict[str, Tensor]) -> Tensor:
        z["b"].mul_(2)
        return landscape(z["a"].flatten(1)) + z["b"].square()

    like = {name: leaf[0] for name, leaf in latent.items()}
    adapter = LatentAdapter(ElementwiseStepSize(3.0, like), update=LineSearch())
    losses = adapter(latent, loss, final_loss=True).losses
    assert (losses[1] < losses[0]).all()


def test_an_optimum_is_searched_for() -> None:
    """Implicit gradients of what a step size that diverges alone would never reach."""
    target = random(2, 3).requires_grad_()
    policy = Implicit()
    adapter = LatentAdapter(5.0, steps=60, differentiation=policy, update=LineSearch())
    found = adapter(torch.zeros(2, 3).double(), lambda z: (z - target).square().sum(1)).latent
    torch.testing.assert_close(found, target, rtol=0, atol=1e-6)
    found.sum().backward()
    torch.testing.assert_close(target.grad, torch.ones_like(target), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", [
    {"shrink": 1.0}, {"shrink": 0.0}, {"decrease": -0.1}, {"decrease": 1.0}, {"trials": 0},
])  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    """By name."""
    with pytest.raises(ValueError, match=f"expected .*{next(iter(setting)).removesuffix('s')}"):
        LineSearch(**setting)  # type: ignore[arg-type]
