"""Update rules on their own: against torch's optimisers, at the edges, per task, in any dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn import (
    Checkpointed,
    ClipGradient,
    GradientDescent,
    GradientPolicy,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    NormaliseGradient,
    TorchOptimiser,
    Unrolled,
    UpdateRule,
)

SGD, ADAM = torch.optim.SGD, torch.optim.Adam
RULES = [
    GradientDescent(),
    Momentum(0.5),
    Momentum(0.5, nesterov=True),
    ClipGradient(0.5),
    NormaliseGradient(then=Momentum(0.5)),
    TorchOptimiser(SGD, momentum=0.5),
    TorchOptimiser(ADAM),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def landscape(z: Tensor) -> Tensor:
    """A loss with hills and valleys in every direction."""
    return (z.sin() + 0.1 * z * z.roll(1, dims=-1)).flatten(1).sum(1)


def descend(optimiser: Callable[..., torch.optim.Optimizer], steps: int, **options: Any) -> Tensor:
    """What the optimiser of torch itself does to a parameter."""
    parameter = torch.nn.Parameter(random(3, 4))
    instance = optimiser([parameter], lr=0.1, **options)
    for _ in range(steps):
        instance.zero_grad()
        landscape(parameter).sum().backward()
        instance.step()
    return parameter.detach()


# --- against torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("rule", "optimiser", "options"),
    [
        (GradientDescent(), SGD, {}),
        (Momentum(0.0), SGD, {}),
        (Momentum(0.7), SGD, {"momentum": 0.7}),
        (Momentum(0.7, nesterov=True), SGD, {"momentum": 0.7, "nesterov": True}),
    ],
    ids=lambda value: repr(value) if not isinstance(value, type) else value.__name__,
)
def test_own_rules_move_like_sgd(
    rule: UpdateRule, optimiser: Any, options: dict[str, Any], steps: int
) -> None:
    """To the last digits."""
    refined = LatentAdapter(0.1, steps=steps, update=rule)(random(3, 4), landscape).latent
    torch.testing.assert_close(refined, descend(optimiser, steps, **options), rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("optimiser", "options", "digits"),
    [
        (SGD, {}, 1e-14),
        (SGD, {"momentum": 0.7, "dampening": 0.2}, 1e-14),
        (SGD, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.3}, 1e-14),
        (ADAM, {}, 1e-12),
        (ADAM, {"eps": 1e-16}, 1e-12),
        (ADAM, {"betas": (0.5, 0.9), "weight_decay": 0.3, "eps": 1e-16}, 1e-12),
    ],
    ids=str,
)
def test_an_optimiser_of_torch_moves_like_itself(
    optimiser: Any, options: dict[str, Any], digits: float, steps: int
) -> None:
    """Under both kinds of loop."""
    expected = descend(optimiser, steps, **options)
    for policy in (Unrolled(), Checkpointed()):
        rule = TorchOptimiser(optimiser, **options)
        adapter = LatentAdapter(0.1, steps=steps, update=rule, differentiation=policy)
        refined = adapter(random(3, 4), landscape).latent
        torch.testing.assert_close(refined, expected, rtol=0, atol=digits)


@pytest.mark.parametrize(
    ("optimiser", "options"),
    [
        (SGD, {"maximize": True}),
        (ADAM, {"maximize": True}),
        (ADAM, {"weight_decay": 0.3, "decoupled_weight_decay": True}),
        (ADAM, {"amsgrad": True, "eps": 1e-16, "betas": (0.5, 0.6)}),
    ],
    ids=str,
)
def test_an_option_is_obeyed_or_refused(optimiser: Any, options: dict[str, Any]) -> None:
    """Never dropped without a word: `maximize` would turn round the sign of every step."""
    try:
        rule = TorchOptimiser(optimiser, **options)
    except (TypeError, ValueError):
        return
    refined = LatentAdapter(0.1, steps=5, update=rule)(random(3, 4), landscape).latent
    torch.testing.assert_close(refined, descend(optimiser, 5, **options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("optimiser", "options", "message"),
    [
        (torch.optim.AdamW, {}, "got AdamW: .*use Adam with weight_decay"),
        (torch.optim.RMSprop, {}, "got RMSprop: .*use Adam"),
        (torch.optim.LBFGS, {}, r"got LBFGS: .*Implicit\(\)"),
        (torch.optim.Adagrad, {}, "got Adagrad: it has no tested differentiable version"),
        (SGD, {"lr": 0.1}, "expected no lr: the adapter's step_size is the learning rate"),
        (SGD, {"momentum": -1.0}, "Invalid momentum"),
    ],
)
def test_other_optimisers_and_options_are_refused(
    optimiser: Any, options: dict[str, Any], message: str
) -> None:
    """When the rule is made, with the reason."""
    with pytest.raises(ValueError, match=message):
        TorchOptimiser(optimiser, **options)
    with pytest.raises(ValueError, match="got no_such_option"):
        TorchOptimiser(SGD, no_such_option=1)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_leaves_its_state_and_inputs_as_they_were(rule: UpdateRule) -> None:
    """So one object serves many adapters, and a step can be recomputed."""
    leaves, gradients = [random(2, 3), random(2, 1, seed=1)], [random(2, 3), random(2, 1, seed=2)]
    _, state = rule(leaves, gradients, [0.1, 0.1], rule.initial_state(leaves))
    before = copy.deepcopy((leaves, gradients, state))
    first, _ = rule(leaves, gradients, [0.1, 0.1], state)
    second, _ = rule(leaves, gradients, [0.1, 0.1], state)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert repr((leaves, gradients, state)) == repr(before)


# --- norms ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    max_norm=st.floats(1e-3, 1e3),
    scales=st.lists(st.floats(-6, 6), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_clipping_and_normalising_measure_all_leaves_of_one_task(
    max_norm: float, scales: list[float], seed: int
) -> None:
    """A gradient within the bound is untouched to the last bit; a longer one gets the bound."""
    tasks = len(scales)
    factor = 10.0 ** torch.tensor(scales, dtype=torch.float64)
    shapes = [(tasks, 3), (tasks,), (tasks, 2, 2)]
    gradients = [
        random(*shape, seed=seed + i) * factor.reshape(-1, *[1] * (len(shape) - 1))
        for i, shape in enumerate(shapes)
    ]
    zeros = [torch.zeros_like(g) for g in gradients]

    def lengths(leaves: list[Tensor]) -> Tensor:
        return torch.cat([leaf.reshape(tasks, -1) for leaf in leaves], dim=1).norm(dim=1)

    clipped, _ = ClipGradient(max_norm)(zeros, gradients, [1.0] * 3, None)
    torch.testing.assert_close(lengths(clipped), lengths(gradients).clamp(max=max_norm))
    within = lengths(gradients) < max_norm
    for received, gradient in zip(clipped, gradients, strict=True):
        assert torch.equal(received[within], -gradient[within])

    unit, _ = NormaliseGradient(1e-12)(zeros, gradients, [1.0] * 3, None)
    expected = lengths(gradients) / (lengths(gradients) + 1e-12)
    torch.testing.assert_close(lengths(unit), expected)
    for received, gradient in zip(unit, gradients, strict=True):
        assert torch.equal(received.sign(), -gradient.sign())


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed()], ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_task_with_a_vanishing_gradient_stays_and_has_finite_derivatives(
    rule: UpdateRule, policy: GradientPolicy
) -> None:
    """The derivative of a norm at zero is where NaN comes from; Adam's root is another place."""
    latent = random(2, 3)
    latent[0] = 0.0
    latent.requires_grad_()
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adapter = LatentAdapter(0.1, steps=3, update=rule, differentiation=policy)
    refined = adapter(latent, lambda z: 0.5 * (weight * z.square()).sum(1)).latent
    assert torch.equal(refined[0], torch.zeros(3, dtype=torch.float64))
    in_latent, in_weight = torch.autograd.grad(refined.sum(), [latent, weight])
    assert in_latent.isfinite().all()
    assert in_weight.isfinite().all()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_coordinate_that_the_loss_ignores_stays(rule: UpdateRule) -> None:
    """With a derivative of one: nothing happened to it."""
    latent = random(2, 3).requires_grad_()
    adapter = LatentAdapter(0.1, steps=3, update=rule)
    refined = adapter(latent, lambda z: z[:, :2].cos().sum(1)).latent
    assert torch.equal(refined[:, 2], latent[:, 2])
    (gradient,) = torch.autograd.grad(refined[:, 2].sum(), latent)
    expected = torch.tensor([[0.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_keeps_the_dtype_of_the_latent(rule: UpdateRule, dtype: torch.dtype) -> None:
    """A float32 learned step size does not promote it, and still learns; nothing overflows."""
    size = LearnedStepSize(0.1, channels=3, steps=3)
    latent = (0.5 * random(2, 3)).to(dtype).requires_grad_()
    refined = LatentAdapter(size, steps=3, update=rule)(latent, lambda z: z.cos().sum(1)).latent
    assert refined.dtype == dtype
    assert refined.isfinite().all()
    exact = LatentAdapter(copy.deepcopy(size), steps=3, update=rule)(
        latent.detach().double(), lambda z: z.cos().sum(1)
    ).latent
    torch.testing.assert_close(refined.double(), exact, rtol=5e-2, atol=5e-2)
    refined.float().sum().backward()
    (log_value,) = size.parameters()
    assert log_value.grad is not None
    assert log_value.grad.dtype == torch.float32
    assert (log_value.grad != 0).all()
    assert log_value.grad.isfinite().all()


def test_rules_nest() -> None:
    """Clip, then normalise, then momentum: the inner rule's state is carried through both."""
    rule = ClipGradient(2.0, then=NormaliseGradient(then=Momentum(0.5)))
    path = [random(2, 3)]
    adapter = LatentAdapter(0.1, update=rule)
    path += [adapter(path[0], landscape, steps=n).latent for n in (1, 2)]
    leaf = [z.detach().clone().requires_grad_() for z in path]
    units = []
    for z in leaf[:2]:
        (gradient,) = torch.autograd.grad(landscape(z).sum(), z)
        units.append(gradient / gradient.norm(dim=1, keepdim=True))
    torch.testing.assert_close(path[1], path[0] - 0.1 * units[0])
    torch.testing.assert_close(path[2], path[1] - 0.1 * (units[1] + 0.5 * units[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.0), r"expected a momentum in \[0, 1\), got 1.0"),
        (lambda: Momentum(-0.1), r"expected a momentum in \[0, 1\), got -0.1"),
        (lambda: Momentum(float("nan")), r"expected a momentum in \[0, 1\), got nan"),
        (lambda: ClipGradient(0.0), "expected a positive norm, got 0.0"),
        (lambda: ClipGradient(float("nan")), "expected a positive norm, got nan"),
        (lambda: NormaliseGradient(0.0), "expected a positive epsilon, got 0.0"),
        (lambda: NormaliseGradient(-1e-8), "expected a positive epsilon, got -1e-08"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], UpdateRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, TorchOptimiser)], ids=repr)
def test_a_rule_prints_as_the_call_that_makes_it(rule: UpdateRule) -> None:
    """So that a log can be copied back."""
    assert repr(eval(repr(rule))) == repr(rule)
    assert repr(rule) in repr(LatentAdapter(0.1, update=rule))
    options = TorchOptimiser(SGD, momentum=0.5)
    assert repr(options) == "TorchOptimiser(SGD, momentum=0.5)"
