"""`darts` and `sama` differentiate a step of the optimiser as it is, group by group.

The kind of prolearner/hypertorch#8, an inner optimiser and a differentiated map that do not match:
groups with rates of their own were differentiated as if they had one.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import MultilevelError
from metalearn.multilevel import INSTALL_COMMAND, Darts, Hypergradient, Level, Multilevel, Sama
from tests.metalearn.reports.levels import level, movement

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Problem:
    """Two vectors, each in a group of its own, weighted examples, and an outer loss."""

    def __init__(self, kind: Any, groups: list[dict[str, Any]], warm: int = 0) -> None:
        self.vectors = nn.ParameterList([nn.Parameter(random(4, seed=n)) for n in range(2)])
        self.before = 0.1 * random(8, seed=5)
        self.weights = nn.ParameterList([nn.Parameter(self.before.clone())])
        self.x, self.y = random(2, 8, 4, seed=2), random(8, seed=3)
        self.target = random(2, 4, seed=4)
        self.optimiser = kind(
            [{"params": [p], **g} for p, g in zip(self.vectors, groups, strict=True)], lr=1e-3
        )
        for _ in range(warm):
            self.optimiser.zero_grad()
            self.inner(list(self.vectors), self.weights[0].detach()).backward()
            self.optimiser.step()
        self.optimiser.zero_grad()

    def inner(self, vectors: list[Tensor], weights: Tensor) -> Tensor:
        out = torch.tanh(self.x[0] @ vectors[0] + self.x[1] @ vectors[1])
        return (weights.exp() * (out - self.y).square()).sum()

    def outer(self, vectors: list[Tensor]) -> Tensor:
        return sum((v - t).square().sum() for v, t in zip(vectors, self.target, strict=True))

    def taken(self, method: Hypergradient, **how: Any) -> Tensor:
        """Minus the outer step at rate 1."""
        lower = level(
            "inner",
            self.vectors,
            lambda _: self.inner(list(self.vectors), self.weights[0]),
            0.0,
            optimiser=self.optimiser,
            hypergradient=method,
            **how,
        )
        upper = level("outer", self.weights, lambda _: self.outer(list(self.vectors)), 1.0)
        return -movement(upper, lambda: Multilevel([lower, upper]).run(1))

    def exact(self, update: Any) -> Tensor:
        """The derivative of the outer loss through one `update(gradients)`, by autograd.

        The mixed derivative is taken where Betty takes it, at the parameters after the step.
        """
        after = [v.detach().clone().requires_grad_() for v in self.vectors]
        weights = self.before.clone().requires_grad_()
        gradients = torch.autograd.grad(self.inner(after, weights), after, create_graph=True)
        cotangents = torch.autograd.grad(self.outer(after), after)
        (result,) = torch.autograd.grad(
            sum(-(u * c).sum() for u, c in zip(update(gradients), cotangents, strict=True)), weights
        )
        return result


def cosine(one: Tensor, other: Tensor) -> float:
    return F.cosine_similarity(one, other, dim=0).item()


def rate_groups(*rates: float, **common: Any) -> list[dict[str, Any]]:
    return [{"lr": rate, **common} for rate in rates]


@pytest.mark.parametrize("rates", [(1e-2, 1e-4), (1e-4, 1e-2), (1e-2, 0.0)])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (SGD, Darts(perturbation=1e-4)),
        (SGD, Sama(perturbation=1e-4)),
        (ADAM, Darts(perturbation=1e-4)),
    ],
    ids=str,
)
def test_rates_of_groups_weigh_the_direction(
    kind: Any, method: Hypergradient, rates: tuple[float, float]
) -> None:
    """Direction and length of one explicit step, over the largest rate."""
    problem = Problem(kind, rate_groups(*rates))
    received = problem.taken(method)

    def update(gradients: Any) -> list[Tensor]:
        return [rate / max(rates) * g for rate, g in zip(rates, gradients, strict=True)]

    exact = problem.exact(update)
    torch.testing.assert_close(received, exact, rtol=1e-5, atol=1e-7)
    ignored = problem.exact(lambda gradients: gradients)
    assert cosine(ignored, exact) < 0.999, "the rates have to matter for the test to mean anything"


@pytest.mark.parametrize("method", [Darts(perturbation=1e-4), Sama(perturbation=1e-4)])
def test_equal_groups_are_a_step_at_rate_one(method: Hypergradient) -> None:
    for rates in ((1e-3, 1e-3), (0.0, 0.0)):
        problem = Problem(SGD, rate_groups(*rates))
        received = problem.taken(method)
        exact = problem.exact(lambda gradients: gradients)
        torch.testing.assert_close(received, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("warm", [0, 3])
def test_momenta_of_groups_weigh_samas_direction(warm: int) -> None:
    """Dampening holds back, looking ahead adds; the first buffer is the gradient itself."""
    groups = [
        {"lr": 1e-3, "momentum": 0.9, "dampening": 0.8},
        {"lr": 1e-3, "momentum": 0.5, "nesterov": True},
    ]
    problem = Problem(SGD, groups, warm)
    received = problem.taken(Sama(perturbation=1e-4))
    gains = (0.2 if warm else 1.0, 1.5)
    exact = problem.exact(
        lambda gradients: [g * gain / 1.5 for g, gain in zip(gradients, gains, strict=True)],
    )
    torch.testing.assert_close(received, exact, rtol=1e-5, atol=1e-7)


ADAM_GROUPS: dict[str, list[dict[str, Any]]] = {
    "rates": rate_groups(1e-3, 3e-5),
    "betas": [{"betas": (0.5, 0.6)}, {"betas": (0.9, 0.999)}],
    "weight decay": [{"weight_decay": 20.0}, {"weight_decay": 3.0}],
    "alike": [{}, {}],
}


@pytest.mark.parametrize("kind", [ADAM, ADAMW], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("name", ADAM_GROUPS)
@pytest.mark.parametrize("warm", [2, 9])
def test_samas_direction_is_that_of_adam_group_by_group(kind: Any, name: str, warm: int) -> None:
    """The step differentiated by hand through both moments and the bias correction."""
    problem = Problem(kind, ADAM_GROUPS[name], warm)
    received, exact = adam_both(problem, warm + 1)
    assert cosine(received, exact) > 0.9999


def adam_both(problem: Problem, step: int) -> tuple[Tensor, Tensor]:
    """What sama takes, and one step of Adam differentiated at the same place."""
    before = [
        {
            k: v.clone() if isinstance(v, Tensor) else v
            for k, v in problem.optimiser.state[p].items()
        }
        for p in problem.vectors
    ]
    start = [v.detach().clone().requires_grad_() for v in problem.vectors]
    (*slopes,) = torch.autograd.grad(problem.inner(start, problem.weights[0].detach()), start)
    received = problem.taken(Sama(perturbation=1e-5))

    def update(gradients: Any) -> list[Tensor]:
        """The derivative of the update at the gradient of the step, times what is given."""
        moved = []
        groups = problem.optimiser.param_groups
        for v, state, slope, g, group in zip(start, before, slopes, gradients, groups, strict=True):
            (beta1, beta2), at = group["betas"], slope.detach().requires_grad_()
            coupled = not group.get("decoupled_weight_decay", False)
            seen = at + group["weight_decay"] * v.detach() if coupled else at
            first = beta1 * state["exp_avg"] + (1 - beta1) * seen
            second = beta2 * state["exp_avg_sq"] + (1 - beta2) * seen.square()
            root = (second / (1 - beta2**step)).sqrt() + group["eps"]
            (derivative,) = torch.autograd.grad(
                (group["lr"] * first / (1 - beta1**step) / root).sum(), at
            )
            moved.append(derivative * g)
        return moved

    return received, problem.exact(update)


def test_a_scheduler_moves_the_rates_after_the_step() -> None:
    """The step that was taken counts, not the next one: here rates of 1 and 0 become 0 and 1."""
    problem = Problem(SGD, rate_groups(1e-3, 1e-3))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        problem.optimiser, [lambda step: float(step == 0), lambda step: float(step > 0)]
    )
    received = problem.taken(Darts(perturbation=1e-4), scheduler=scheduler)
    exact = problem.exact(lambda gradients: [gradients[0], 0 * gradients[1]])
    torch.testing.assert_close(received, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "options", "method", "message"),
    [
        (SGD, {"maximize": True}, "darts", "that minimises in level 'inner', .* maximize=True"),
        (ADAM, {"maximize": True}, "cg", "that minimises in level 'inner', .* maximize=True"),
        (ADAM, {"amsgrad": True}, "sama", "without amsgrad in level 'inner'"),
    ],
    ids=str,
)
def test_steps_whose_derivative_is_not_known_are_refused(
    kind: Any, options: dict[str, Any], method: str, message: str
) -> None:
    """In any group."""
    problem = Problem(kind, [{}, options])
    lower = Level(
        name="inner",
        module=problem.vectors,
        optimiser=problem.optimiser,
        loss=lambda _: problem.inner(list(problem.vectors), problem.weights[0]),
        batches=lambda step: step,
        hypergradient=method,
    )
    upper = level("outer", problem.weights, lambda _: problem.outer(list(problem.vectors)), 1.0)
    with pytest.raises(MultilevelError, match=message):
        Multilevel([lower, upper])
