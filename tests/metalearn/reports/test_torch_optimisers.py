"""`TorchOptimiser` moves like torch's own optimiser for every option that it takes, or refuses it.

The report: facebookresearch/higher#71. Its Adam adds epsilon to the root of the second moment
before the bias is corrected, torch's after: three steps of .1 on a gradient of 1e-3 with eps 1e-3
gave -.0125, torch's -.15. Tensors given as betas or momentum were copied, and never learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    LatentAdapter,
    TorchOptimiser,
    Truncated,
    Unrolled,
)

SGD, ADAM = torch.optim.SGD, torch.optim.Adam
POLICIES = [Unrolled(), Checkpointed(), FiniteDifference(), FirstOrder(), Truncated(1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def hills(scale: float) -> Callable[[Tensor], Tensor]:
    """A loss whose gradients are of the order of `scale`."""
    return lambda z: scale * (z.sin() + 0.3 * z * z.roll(1, dims=-1)).flatten(1).sum(1)


def descend(
    kind: Any, options: dict[str, Any], loss: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """What torch's own optimiser does to a parameter."""
    parameter = torch.nn.Parameter(random(3, 4))
    optimiser = kind([parameter], lr=0.1, **options)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(parameter).sum().backward()
        optimiser.step()
    return parameter.detach()


def grid(**choices: list[Any]) -> list[dict[str, Any]]:
    """Every combination of every choice."""
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


ADAM_OPTIONS = grid(
    eps=[1e-8, 1e-3, 1e-1],
    betas=[(0.9, 0.999), (0.0, 0.5), (0.5, 0.0), (0.8, 0.6)],
    amsgrad=[False, True],
    weight_decay=[0.0, 0.3],
)
SGD_OPTIONS = [
    *grid(momentum=[0.0, 0.7], dampening=[0.0, 0.4, 1.0], weight_decay=[0.0, 0.3]),
    *grid(momentum=[0.7, 1.0], nesterov=[True], weight_decay=[0.0, 0.3]),
]


@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["small gradients", "gradients of one"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [*[(ADAM, options) for options in ADAM_OPTIONS], *[(SGD, options) for options in SGD_OPTIONS]],
    ids=str,
)
def test_every_accepted_option_moves_like_torch(
    kind: Any, options: dict[str, Any], scale: float
) -> None:
    for steps in (1, 2, 6):
        expected = descend(kind, options, hills(scale), steps)
        adapter = LatentAdapter(0.1, steps=steps, update=TorchOptimiser(kind, **options))
        received = adapter(random(3, 4), hills(scale)).latent
        torch.testing.assert_close(received, expected, rtol=0, atol=1e-10)


def test_the_report() -> None:
    """In float32: eps 1e-3, a gradient of 1e-3, three steps of .1."""
    rule = TorchOptimiser(ADAM, eps=1e-3)
    moved = LatentAdapter(0.1, steps=3, update=rule)(torch.zeros(1, 1), lambda z: 1e-3 * z.sum(1))
    torch.testing.assert_close(moved.latent, torch.tensor([[-0.15]]), rtol=0, atol=1e-6)


LEARNED: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (SGD, {"momentum": 0.6}, {}),
    (SGD, {"momentum": 0.6, "dampening": 0.2}, {"weight_decay": 0.1}),
    (SGD, {"momentum": 0.6, "weight_decay": 0.1}, {"nesterov": True}),
    (SGD, {"weight_decay": 0.0}, {}),  # `higher` leaves out what is zero
    (SGD, {"momentum": 0.6, "dampening": 0.0}, {}),
    (ADAM, {"betas": (0.8, 0.9)}, {}),
    (ADAM, {"betas": (0.8, 0.9), "eps": 0.05}, {"amsgrad": True, "weight_decay": 0.1}),
    (ADAM, {"eps": 0.05, "weight_decay": 0.1}, {}),
    (ADAM, {"weight_decay": 0.0}, {"betas": (0.8, 0.9)}),
]


def with_tensors(values: dict[str, Any], numbers: Tensor) -> dict[str, Any]:
    """The options with their numbers taken from one vector."""
    left = iter(numbers.unbind())
    return {
        name: tuple(next(left) for _ in value) if isinstance(value, tuple) else next(left)
        for name, value in values.items()
    }


def flat(values: dict[str, Any]) -> list[float]:
    return [x for v in values.values() for x in (v if isinstance(v, tuple) else (v,))]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize(("kind", "learned", "fixed"), LEARNED, ids=str)
def test_tensors_are_learned(
    kind: Any, learned: dict[str, Any], fixed: dict[str, Any], policy: GradientPolicy
) -> None:
    """Values as with numbers; gradients against central differences of torch's own optimiser.

    Of policies that leave out second-order terms, against the same policy with numbers.
    """
    exact = isinstance(policy, Unrolled | Checkpointed | FiniteDifference)
    numbers = torch.tensor(flat(learned), dtype=torch.float64, requires_grad=True)

    def refine(options: dict[str, Any], differentiation: GradientPolicy) -> Tensor:
        rule = TorchOptimiser(kind, **options, **fixed)
        adapter = LatentAdapter(0.1, steps=3, update=rule, differentiation=differentiation)
        return adapter(random(3, 4).requires_grad_(), hills(1.0)).latent

    refined = refine(with_tensors(learned, numbers), policy)
    torch.testing.assert_close(refined, descend(kind, {**learned, **fixed}, hills(1.0), 3))
    (gradient,) = torch.autograd.grad(refined.pow(3).sum(), numbers)
    if not exact:
        assert (gradient != 0).all()
        return
    for index in range(len(numbers)):
        ends = []
        for shift in (1e-6, -1e-6):
            moved = numbers.detach().clone()
            moved[index] += shift
            if moved.min() < 0:  # a zero: the difference is taken on one side
                moved[index] = 0.0
            values = with_tensors(learned, moved)
            plain = {
                n: tuple(map(float, v)) if isinstance(v, tuple) else float(v)
                for n, v in values.items()
            }
            end = descend(kind, {**plain, **fixed}, hills(1.0), 3).pow(3).sum()
            ends.append((moved[index].item(), end.item()))
        slope = (ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0])
        assert gradient[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_betas_may_be_one_tensor_and_numbers_may_have_an_axis() -> None:
    betas = torch.tensor([0.8, 0.9], dtype=torch.float64, requires_grad=True)
    eps = torch.tensor([0.05], dtype=torch.float64, requires_grad=True)
    rule = TorchOptimiser(ADAM, betas=betas, eps=eps)
    refined = LatentAdapter(0.1, steps=3, update=rule)(random(3, 4), hills(1.0)).latent
    expected = descend(ADAM, {"betas": (0.8, 0.9), "eps": 0.05}, hills(1.0), 3)
    torch.testing.assert_close(refined, expected)
    gradients = torch.autograd.grad(refined.sum(), [betas, eps])
    assert all((gradient != 0).all() for gradient in gradients)


def test_a_learned_number_is_read_in_every_step_and_checked() -> None:
    """The outer optimiser may move it anywhere."""
    momentum = torch.nn.Parameter(torch.tensor(0.5))
    adapter = LatentAdapter(0.1, steps=2, update=TorchOptimiser(SGD, momentum=momentum))
    loss = lambda z: z.sum(1)  # noqa: E731
    assert adapter(torch.zeros(1, 1), loss).latent.item() == pytest.approx(-0.25)
    momentum.data.fill_(1.0)
    assert adapter(torch.zeros(1, 1), loss).latent.item() == pytest.approx(-0.3)
    momentum.data.fill_(-0.1)
    with pytest.raises(ValueError, match="Invalid momentum"):
        adapter(torch.zeros(1, 1), loss)
    momentum.data.fill_(0.0)
    with pytest.raises(ValueError, match=r"learned momentum other than 0, .*small positive"):
        adapter(torch.zeros(1, 1), loss)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SGD, {"momentum": torch.tensor([0.1, 0.2])}, r"momentum as numbers, got .*\(2,\)"),
        (SGD, {"momentum": torch.tensor(1)}, "momentum as numbers, got .*int64"),
        (SGD, {"momentum": 0.5, "nesterov": torch.tensor(1.0)}, "nesterov as True or False"),
        (ADAM, {"amsgrad": torch.tensor(True)}, "amsgrad as True or False"),
        (ADAM, {"betas": (torch.ones(2) / 2, 0.9)}, "betas as numbers"),
        (ADAM, {"betas": (torch.tensor(1.5), 0.9)}, "Invalid beta"),
        (SGD, {"momentum": torch.tensor(0.0, requires_grad=True)}, "other than 0, got exactly 0"),
    ],
    ids=str,
)
def test_other_tensors_are_refused_by_name(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TorchOptimiser(kind, **options)


@pytest.mark.parametrize("kind", [SGD, ADAM], ids=["SGD", "Adam"])
@pytest.mark.parametrize(
    "name",
    ["maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay"],
)
def test_options_that_would_not_be_obeyed_are_refused_by_name(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"got {name}: it would not be obeyed"):
        TorchOptimiser(kind, **{name: True})


def test_second_derivatives_at_rest_are_finite() -> None:
    """Adam's root has no derivative at zero: a coordinate that never moved gives none."""
    latent = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    rule = TorchOptimiser(ADAM, betas=(0.8, 0.9))
    refined = LatentAdapter(0.1, steps=3, update=rule)(
        latent, lambda z: (weight * (z - 1).square()).sum(1)
    ).latent
    (first,) = torch.autograd.grad(refined.square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert (refined[:, 0] == 0).all()
