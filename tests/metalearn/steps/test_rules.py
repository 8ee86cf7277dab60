"""Step sizes and update rules: shapes, outer gradients, positivity, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import FirstOrder, FixedStepSize, GradientDescent, LatentAdapter, LearnedStepSize


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def learned(initial: float, **settings: Any) -> LearnedStepSize:
    """A learned step size in float64 whose values differ, so that a mixed-up index shows."""
    size = LearnedStepSize(initial, **settings).double()
    for seed, parameter in enumerate(size.parameters()):
        parameter.data = parameter.data + 0.3 * random(*parameter.shape, seed=50 + seed)
    return size


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, [(1, 1)]),
        ({"channels": 4}, [(1, 4)]),
        ({"steps": 3}, [(3, 1)]),
        ({"channels": 4, "steps": 3}, [(3, 4)]),
        ({"channels": {"a": 2, "b": (5, None)}, "steps": 2}, [(2, 2), (2, 5), (2, 1)]),
    ],
    ids=["scalar", "per channel", "per step", "both", "pytree"],
)
def test_a_learned_step_size_has_one_parameter_per_asked_axis(
    settings: dict[str, Any], shapes: list[tuple[int, int]]
) -> None:
    """And all of them start at the initial value."""
    size = LearnedStepSize(0.3, **settings)
    assert [tuple(p.shape) for p in size.parameters()] == shapes
    for leaf, (steps, channels) in enumerate(shapes):
        for step in range(steps):
            torch.testing.assert_close(size(step, leaf), torch.full((channels,), 0.3))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_in_a_scalar_step_size_has_its_closed_form(steps: int) -> None:
    """For 0.5 (z-c)'A(z-c): z_n = c + M^n (z-c), so dz_n/d alpha = -n A M^(n-1) (z-c)."""
    size = learned(0.2)
    alpha = size(0, 0).item()
    latent, centre, target = random(1, 3), random(1, 3, seed=1), random(1, 3, seed=2)
    root = random(3, 3, seed=3)
    matrix = root @ root.T

    def loss(z: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,ij,bj->b", z - centre, matrix, z - centre)

    refined = LatentAdapter(size, steps=steps)(latent, loss).latent
    (0.5 * (refined - target).square().sum()).backward()

    contraction = torch.eye(3, dtype=torch.float64) - alpha * matrix
    offset = (latent - centre)[0]
    last = centre[0] + torch.linalg.matrix_power(contraction, steps) @ offset
    slope = -steps * matrix @ torch.linalg.matrix_power(contraction, steps - 1) @ offset
    # The parameter is the logarithm: d/d beta = alpha d/d alpha.
    expected = alpha * (last - target[0]) @ slope
    (log_value,) = size.parameters()
    torch.testing.assert_close(log_value.grad, expected.reshape(1, 1))


def test_sizes_per_step_and_channel_act_on_their_own_step_and_channel() -> None:
    """With L = 0.5 sum_i a_i z_i^2, channel i shrinks by the product over t of 1 - alpha_ti a_i."""
    size = learned(0.3, channels=3, steps=2)
    curvature, latent = random(3, seed=1).exp(), random(2, 3)
    refined = LatentAdapter(size, steps=2)(
        latent, lambda z: 0.5 * (curvature * z.square()).sum(1)
    ).latent
    (log_value,) = size.parameters()
    factors = 1 - log_value.exp() * curvature
    torch.testing.assert_close(refined, factors.prod(dim=0) * latent)

    refined.sum().backward()
    # d/d beta_ti = -alpha_ti a_i * (the other step's factor), summed over tasks.
    expected = -log_value.exp() * curvature * factors.flip(0) * latent.sum(0)
    torch.testing.assert_close(log_value.grad, expected.detach())


@pytest.mark.parametrize(
    "settings",
    [{}, {"channels": 3}, {"steps": 2}, {"channels": 3, "steps": 2}],
    ids=["scalar", "per channel", "per step", "both"],
)
def test_the_gradient_in_the_log_step_size_matches_central_differences(
    settings: dict[str, Any],
) -> None:
    """Through a loss that is not quadratic, so that later steps feel the earlier sizes."""
    size = learned(0.2, **settings)
    latent, weight = random(2, 3), random(3, 3, seed=1)
    adapter = LatentAdapter(size, steps=2)

    def outer() -> Tensor:
        refined = adapter(latent, lambda z: torch.tanh(z @ weight).square().sum(1)).latent
        return refined.pow(3).sum()

    outer().backward()
    (log_value,) = size.parameters()
    numeric = torch.zeros_like(log_value)
    for index in range(log_value.numel()):
        ends = []
        for shift in (1e-5, -2e-5):
            log_value.data.view(-1)[index] += shift
            ends.append(outer().item())
        log_value.data.view(-1)[index] += 1e-5
        numeric.view(-1)[index].data.fill_((ends[0] - ends[1]) / 2e-5)
    torch.testing.assert_close(log_value.grad, numeric.detach(), rtol=1e-7, atol=1e-8)


def test_first_order_still_trains_the_step_size() -> None:
    """The inner gradient is a constant, its factor is not: dz'/d beta = -alpha g."""
    size = learned(0.2)
    latent = random(2, 3)
    refined = LatentAdapter(size, differentiation=FirstOrder())(
        latent, lambda z: 0.5 * z.square().sum(1)
    ).latent
    refined.sum().backward()
    (log_value,) = size.parameters()
    torch.testing.assert_close(log_value.grad, (-log_value.exp() * latent.sum()).detach())


def test_a_pytree_of_widths_gives_every_leaf_its_own_sizes() -> None:
    """Leaves of widths 2 and 3, each moved by its own learned vector."""
    size = learned(0.3, channels=(2, 3))
    latent = (random(4, 2), random(4, 3, seed=1))
    refined = LatentAdapter(size)(
        latent, lambda p: 0.5 * (p[0].square().sum(1) + p[1].square().sum(1))
    ).latent
    for leaf, parameter in enumerate(size.parameters()):
        torch.testing.assert_close(refined[leaf], (1 - parameter[0].exp()) * latent[leaf])


def test_one_scalar_is_shared_by_all_leaves() -> None:
    """Without `channels` a pytree needs no structure of its own."""
    size = learned(0.3)
    latent = {"a": random(4, 2), "b": random(4, 3, seed=1)}
    refined = LatentAdapter(size)(
        latent, lambda p: 0.5 * (p["a"].square().sum(1) + p["b"].square().sum(1))
    ).latent
    for name, before in latent.items():
        torch.testing.assert_close(refined[name], (1 - size(0, 0)) * before)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_learned_step_size_stays_positive_whatever_the_optimiser_does(sign: float) -> None:
    """Steps of 5 in the logarithm would make a plain parameter negative at once."""
    size = LearnedStepSize(0.5, channels=3)
    optimiser = torch.optim.SGD(size.parameters(), lr=5.0)
    for _ in range(10):
        optimiser.zero_grad()
        (sign * size.log_value[0].sum()).backward()
        optimiser.step()
    assert (size(0, 0) > 0).all()
    assert size(0, 0).isfinite().all()
    assert ((size(0, 0) < 0.5) == (sign > 0)).all(), "the optimiser did move it"


def test_a_learned_step_size_survives_its_state_dict() -> None:
    """It is an ordinary part of a checkpoint."""
    size, other = learned(0.2, channels=(2, 3)), LearnedStepSize(0.9, channels=(2, 3)).double()
    other.load_state_dict(size.state_dict())
    for leaf in range(2):
        assert torch.equal(other(0, leaf), size(0, leaf))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_fixed_step_size_must_be_finite_and_not_negative(value: float) -> None:
    """Uphill or unbounded steps are never meant."""
    with pytest.raises(ValueError, match=f"expected a finite step size >= 0, got {value}"):
        FixedStepSize(value)


def test_a_fixed_step_size_of_zero_changes_nothing() -> None:
    """The ablation without refinement."""
    latent = random(2, 3)
    refined = LatentAdapter(0.0, steps=3)(latent, lambda z: z.square().sum(1)).latent
    assert torch.equal(refined, latent)


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_learned_step_size_must_start_positive(value: float) -> None:
    """Its logarithm is the parameter."""
    with pytest.raises(ValueError, match=f"expected a positive, finite .*, got {value}"):
        LearnedStepSize(value)


def test_more_steps_than_learned_sizes_are_refused() -> None:
    """The message names both numbers."""
    adapter = LatentAdapter(LearnedStepSize(0.1, steps=2), steps=3)
    with pytest.raises(ValueError, match=r"expected at most 2 inner steps .* asked for step 3"):
        adapter(torch.ones(2, 3), lambda z: z.square().sum(1))


def test_more_leaves_than_learned_sizes_are_refused() -> None:
    """A latent of three leaves with two sets of sizes."""
    adapter = LatentAdapter(LearnedStepSize(0.1, channels=(3, 3)))
    latent = tuple(torch.ones(2, 3) for _ in range(3))
    with pytest.raises(ValueError, match="expected a latent with 2 leaves, asked for leaf 3"):
        adapter(latent, lambda p: p[0].square().sum(1))


class HeavyBall:
    """Momentum as an update rule with explicit state, written as a user would."""

    def initial_state(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(leaf) for leaf in leaves]

    def __call__(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sizes: Sequence[Tensor | float],
        state: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        state = [0.9 * v + g for v, g in zip(state, gradients, strict=True)]
        return [z - a * v for z, a, v in zip(leaves, sizes, state, strict=True)], state


def test_the_state_of_a_custom_rule_is_carried_from_step_to_step() -> None:
    """Heavy ball arrives where torch.optim.SGD(momentum=0.9) does."""
    start, weight = random(2, 3), random(3, 3, seed=1)

    def loss(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight).square().sum(1)

    reference = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([reference], lr=0.1, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        loss(reference).sum().backward()
        optimiser.step()
    refined = LatentAdapter(0.1, steps=4, update=HeavyBall())(start, loss).latent
    torch.testing.assert_close(refined, reference)


def test_gradient_descent_refuses_a_missing_gradient() -> None:
    """Leaves and gradients are matched one to one, never cut to the shorter list."""
    with pytest.raises(ValueError, match="shorter"):
        GradientDescent()([torch.ones(1), torch.ones(1)], [torch.ones(1)], [0.1, 0.1], None)
