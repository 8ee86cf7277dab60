"""Hypergradients against closed forms, exact unrolling, and each other; and frozen randomness."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.multilevel.bridge import INSTALL_COMMAND
from metalearn.multilevel.hypergradients import (
    ConjugateGradient,
    Darts,
    Hypergradient,
    Neumann,
    Sama,
)
from metalearn.multilevel.levels import Level
from metalearn.multilevel.problem import Multilevel
from metalearn.multilevel.ranges import Positive
from metalearn.randomness import fold, seeded

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)


def normal(*shape: int, seed: int) -> Tensor:
    """A seeded float64 normal tensor; different seeds for different roles in a test."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, other: Tensor) -> float:
    return F.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def nothing(step: int) -> int:
    """Batches of full-batch problems."""
    return step


def taken_hypergradient(
    settings: nn.Parameter,
    inner: dict[str, Any],
    outer_loss: Callable[[Any], Tensor],
    method: Hypergradient,
    *,
    steps: int = 1,
    seed: int = 0,
) -> Tensor:
    """What the outer level moves by, at rate 1, after so many inner steps."""
    holder = nn.ParameterList([settings])
    levels = [
        Level(name="inner", batches=nothing, hypergradient=method, unroll_steps=steps, **inner),
        Level(
            name="outer",
            module=holder,
            optimiser=torch.optim.SGD([settings], lr=1.0),
            loss=outer_loss,
            batches=nothing,
        ),
    ]
    before = settings.detach().clone()
    Multilevel(levels, seed=seed).run(steps)
    return before - settings.detach()


class Ridge:
    """Per-feature ridge regression: L = mean (Xw - y)^2 + sum exp(b_j) w_j^2, F = validation."""

    def __init__(self) -> None:
        self.x, self.y = normal(20, 5, seed=0), normal(20, seed=1)
        self.x_out, self.y_out = normal(12, 5, seed=2), normal(12, seed=3)
        self.log_decay = nn.Parameter(normal(5, seed=4) - 1.0)
        self.module = nn.ParameterDict({"w": nn.Parameter(self.solution())})
        self.w = self.module["w"]

    def hessian(self) -> Tensor:
        return 2 * self.x.T @ self.x / 20 + 2 * self.log_decay.detach().exp().diag()

    def solution(self) -> Tensor:
        return torch.linalg.solve(self.hessian(), 2 * self.x.T @ self.y / 20)

    def outer_loss(self, batch: Any) -> Tensor:
        return (self.x_out @ self.w - self.y_out).square().mean()

    def inner_loss(self, batch: Any) -> Tensor:
        fit = (self.x @ self.w - self.y).square().mean()
        return fit + (self.log_decay.exp() * self.w.square()).sum()

    def closed_form(self, inverse: Tensor) -> Tensor:
        """-d2L/db dw . inverse . dF/dw with d2L/db_j dw_j = 2 exp(b_j) w_j."""
        w = self.solution()
        v = 2 * self.x_out.T @ (self.x_out @ w - self.y_out) / 12
        return -2 * self.log_decay.detach().exp() * w * (inverse @ v)

    def taken(self, method: Hypergradient) -> Tensor:
        inner = {
            "module": self.module,
            # At rate 0 the weights stay at the optimum.
            "optimiser": torch.optim.SGD([self.w], lr=0.0),
            "loss": self.inner_loss,
        }
        return taken_hypergradient(self.log_decay, inner, self.outer_loss, method)


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (ConjugateGradient(iterations=5), 1e-9),
        (Neumann(iterations=400, step_size=0.1), 1e-9),
        (Neumann(iterations=20, step_size=0.1), 0.1),
    ],
)
def test_ridge_regression_with_the_inverse_hessian(method: Hypergradient, tolerance: float) -> None:
    """The true hypergradient at the inner optimum, from linear algebra alone."""
    ridge = Ridge()
    exact = ridge.closed_form(torch.linalg.inv(ridge.hessian()))
    taken = ridge.taken(method)
    assert (taken - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("method", [Darts(), Sama()])
def test_ridge_regression_with_the_identity(method: Hypergradient) -> None:
    """Darts, and Sama under SGD: the identity in place of the inverse Hessian, and exactly that.

    The difference quotient of a quadratic has no error but rounding.
    """
    ridge = Ridge()
    exact = ridge.closed_form(torch.eye(5, dtype=torch.float64))
    true = ridge.closed_form(torch.linalg.inv(ridge.hessian()))
    taken = ridge.taken(method)
    assert (taken - exact).norm() < 1e-9 * exact.norm()
    assert 0.8 < cosine(taken, true) < 0.95


def test_neumann_is_a_truncated_series() -> None:
    """K = 3: the four terms written out."""
    ridge = Ridge()
    step = torch.eye(5, dtype=torch.float64) - 0.1 * ridge.hessian()
    series = 0.1 * torch.stack([torch.linalg.matrix_power(step, k) for k in range(4)]).sum(0)
    exact = ridge.closed_form(series)
    taken = ridge.taken(Neumann(iterations=3, step_size=0.1))
    assert (taken - exact).norm() < 1e-9 * exact.norm()


class SmallNetwork:
    """A float64 perceptron, weighted examples, and decay that makes it strongly convex nearby."""

    def __init__(self, *, dropout: float = 0.0, generator: torch.Generator | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.x, self.y = normal(16, 4, seed=1), normal(16, 1, seed=2)
        self.x_out, self.y_out = normal(16, 4, seed=3), normal(16, 1, seed=4)
        self.weights = nn.Parameter(normal(16, seed=5) * 0.1)
        self.dropout, self.generator = dropout, generator

    def inner(self, parameters: dict[str, Tensor], weights: Tensor) -> Tensor:
        """Weighted training loss; the masks hide inputs, as a masked autoencoder's do."""
        x = self.x
        if self.dropout:
            x = x * (torch.rand(x.shape, generator=self.generator) > self.dropout) * 1.0
        out = torch.func.functional_call(self.module, parameters, (x,))
        loss = (weights.exp() * (out - self.y).square().squeeze(1)).mean()
        return loss + 0.05 * sum(p.square().sum() for p in parameters.values())

    def outer(self, parameters: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(self.module, parameters, (self.x_out,))
        return (out - self.y_out).square().mean()

    def parameters(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters())

    def taken(self, method: Hypergradient, optimiser: torch.optim.Optimizer, **how: Any) -> Tensor:
        inner = {
            "module": self.module,
            "optimiser": optimiser,
            "loss": lambda _: self.inner(self.parameters(), self.weights),
        }
        return taken_hypergradient(
            self.weights, inner, lambda _: self.outer(self.parameters()), method, **how
        )

    def unrolled(self, rate: float, steps: int) -> Tensor:
        """Exact derivative of the outer loss through so many steps of gradient descent."""
        parameters = {n: p.detach().clone().requires_grad_() for n, p in self.parameters().items()}
        for _ in range(steps):
            loss = self.inner(parameters, self.weights)
            gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            parameters = {
                n: p - rate * g for (n, p), g in zip(parameters.items(), gradients, strict=True)
            }
        (result,) = torch.autograd.grad(self.outer(parameters), [self.weights])
        return result

    def train(self, steps: int = 3000) -> None:
        """To the inner optimum."""
        optimiser = torch.optim.LBFGS(
            self.module.parameters(), max_iter=steps, tolerance_grad=1e-12, tolerance_change=0.0
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = self.inner(self.parameters(), self.weights.detach())
            loss.backward()
            return loss

        optimiser.step(closure)


@pytest.mark.parametrize("method", [Darts(), Sama()])
def test_one_unrolled_step_of_gradient_descent(method: Hypergradient) -> None:
    """Far from the optimum, on a network: direction of one exact step, length over the rate."""
    network = SmallNetwork()
    exact = network.unrolled(0.01, 1)
    taken = network.taken(method, torch.optim.SGD(network.module.parameters(), lr=0.01))
    assert cosine(taken, exact) > 0.99
    assert torch.isclose(0.01 * taken.norm(), exact.norm(), rtol=0.05)


def test_sama_follows_one_step_of_adam_and_darts_does_not() -> None:
    """The twentieth step of Adam, differentiated by hand through moments and square root."""

    def prepare() -> tuple[SmallNetwork, torch.optim.Adam]:
        network = SmallNetwork()
        optimiser = torch.optim.Adam(network.module.parameters(), lr=1e-3)
        for _ in range(19):
            optimiser.zero_grad()
            network.inner(network.parameters(), network.weights.detach()).backward()
            optimiser.step()
        return network, optimiser

    network, optimiser = prepare()
    parameters = network.parameters()
    loss = network.inner(parameters, network.weights)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    stepped = {}
    for (name, p), g in zip(parameters.items(), gradients, strict=True):
        state = optimiser.state[p]
        first = (0.9 * state["exp_avg"] + 0.1 * g) / (1 - 0.9**20)
        second = (0.999 * state["exp_avg_sq"] + 0.001 * g * g) / (1 - 0.999**20)
        stepped[name] = p - 1e-3 * first / (second.sqrt() + 1e-8)
    (exact,) = torch.autograd.grad(network.outer(stepped), [network.weights])
    sama = network.taken(Sama(perturbation=1e-3), optimiser)
    darts_network, darts_optimiser = prepare()
    darts = darts_network.taken(Darts(), darts_optimiser)
    assert cosine(sama, exact) > 0.99
    assert cosine(darts, exact) < 0.95


@pytest.mark.parametrize(
    "method", [Neumann(iterations=400, step_size=0.2), ConjugateGradient(iterations=40)]
)
def test_long_unrolling_near_the_optimum(method: Hypergradient) -> None:
    """Four hundred exact steps from the optimum, against an inverse Hessian."""
    network = SmallNetwork()
    network.train()
    exact = network.unrolled(0.2, 401)
    taken = network.taken(method, torch.optim.SGD(network.module.parameters(), lr=0.0))
    assert cosine(taken, exact) > 0.99
    assert torch.isclose(taken.norm(), exact.norm(), rtol=0.05)


def test_frozen_masks_save_the_hypergradient() -> None:
    """Masks drawn from torch's generator are frozen; from a generator of one's own they are not.

    The second case is what Betty does by itself: the two losses of the difference quotient see
    other masks, and their difference is noise over a small number.
    """
    cosines = {}
    for kind, generator in (("frozen", None), ("redrawn", torch.Generator().manual_seed(3))):
        found = []
        for seed in range(8):
            network = SmallNetwork(dropout=0.5, generator=generator)
            taken = network.taken(
                Darts(),
                torch.optim.SGD(network.module.parameters(), lr=0.01),
                seed=seed,
            )
            # The masks of the first step, as the problem has drawn them.
            reference = SmallNetwork(dropout=0.5)
            with seeded(fold(seed, "inner", 1)):
                found.append(cosine(taken, reference.unrolled(0.01, 1)))
        cosines[kind] = found
    mean = {kind: sum(found) / len(found) for kind, found in cosines.items()}
    print(mean)
    assert min(cosines["frozen"]) > 0.99
    assert abs(mean["redrawn"]) < 0.5


def test_positive_settings_move_by_relative_steps() -> None:
    """The derivative with respect to a logarithm is the value times that to the value."""
    value = Positive(torch.tensor([0.5, 2.0], dtype=torch.float64))
    value().square().sum().backward()
    assert value.log_value.grad is not None
    expected = 2 * value().detach() ** 2
    assert torch.allclose(value.log_value.grad, expected, atol=0, rtol=1e-12)
