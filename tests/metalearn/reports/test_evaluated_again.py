"""A support loss that is evaluated again must be what it was.

Reported for `torch.utils.checkpoint`, whose recomputation reads what names hold by then
(https://github.com/pytorch/pytorch/issues/112059 asked for a check of its metadata); here the
policies that evaluate the loss again either give plain autograd's gradient or name what changed,
also where losses and gradients happen to agree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import (
    ChangedLossError,
    Checkpointed,
    FiniteDifference,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    Unrolled,
)

AGAIN = [
    Checkpointed(),
    FiniteDifference(),
    FiniteDifference(stencil="forward"),
    Implicit(damping=5.0),
]
# A world that changes: what the loss reads, and how to change it.
World = Callable[[], tuple[Callable[[Tensor], Tensor], Callable[[], object]]]

SCALE: Any = 1.0
WEIGHT: Any = None
USED: Any = torch.sin


def helper(z: Tensor) -> Tensor:
    return (SCALE * z.square()).sum(1)


@pytest.fixture(autouse=True)
def restored_names() -> Any:
    global SCALE, WEIGHT, USED
    yield
    SCALE, WEIGHT, USED = 1.0, None, torch.sin


def rebind(**values: Any) -> None:
    globals().update(values)


def name_of_a_number() -> tuple[Any, Any]:
    """At z = 0: equal loss, equal gradient, another curvature."""
    return (lambda z: SCALE * z.square().sum(1) - z.sum(1)), lambda: rebind(SCALE=3.0)


def name_in_a_helper() -> tuple[Any, Any]:
    return (lambda z: helper(z) - z.sum(1)), lambda: rebind(SCALE=3.0)


def name_of_a_function() -> tuple[Any, Any]:
    return (lambda z: (USED(z) - z).sum(1)), lambda: rebind(USED=torch.tanh)


def name_of_an_equal_parameter() -> tuple[Any, Any]:
    """Its value is the same; its gradient would be lost."""
    rebind(WEIGHT=torch.ones(1, dtype=torch.float64, requires_grad=True))
    new = torch.ones(1, dtype=torch.float64, requires_grad=True)
    return (lambda z: (WEIGHT * z.sin() - z).sum(1)), lambda: rebind(WEIGHT=new)


def name_of_a_constant_tensor() -> tuple[Any, Any]:
    rebind(WEIGHT=torch.ones(1, dtype=torch.float64))
    new = torch.full((1,), 1.001, dtype=torch.float64)
    return (lambda z: (WEIGHT * z.square() - z).sum(1)), lambda: rebind(WEIGHT=new)


def value_made_in_the_call() -> tuple[Any, Any]:
    return (lambda z: (torch.tensor(SCALE) * z.square() - z).sum(1)), lambda: rebind(SCALE=2.0)


def array() -> tuple[Any, Any]:
    values = np.ones(1)
    return (
        lambda z: (torch.from_numpy(values.copy()) * z.square() - z).sum(1),
        lambda: values.fill(2.0),
    )


def bound_method() -> tuple[Any, Any]:
    class Task:
        scale = 1.0

        def loss(self, z: Tensor) -> Tensor:
            return (self.scale * z.square() - z).sum(1)

    task = Task()
    return task.loss, lambda: setattr(task, "scale", 2.0)


def callable_object() -> tuple[Any, Any]:
    class Task:
        power = 2

        def __call__(self, z: Tensor) -> Tensor:
            return (z**self.power - z).sum(1)

    task = Task()
    return task, lambda: setattr(task, "power", 4)


def partial_of_a_list() -> tuple[Any, Any]:
    scales = [1.0]
    loss = functools.partial(lambda z, scales: (scales[0] * z.square() - z).sum(1), scales=scales)
    return loss, lambda: scales.__setitem__(0, 2.0)


def dropout_module_in_eval() -> tuple[Any, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    return (lambda z: network(z).square().sum(1)), lambda: network.eval()


def normalisation_in_eval() -> tuple[Any, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    return (lambda z: network(z).square().sum(1)), lambda: network.eval()


def running_statistics_moved() -> tuple[Any, Any]:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2).double().eval()
    return (
        lambda z: (norm(z).pow(2)).sum(1),
        lambda: norm.running_var.mul_(2.0),  # type: ignore[union-attr]
    )


def buffer_refilled() -> tuple[Any, Any]:
    buffer = torch.ones(1, dtype=torch.float64)
    return (lambda z: (buffer * z.square() - z).sum(1)), lambda: buffer.fill_(3.0)


def parameter_swapped() -> tuple[Any, Any]:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    new = torch.full((1,), 2.0, dtype=torch.float64)
    return (lambda z: (weight * z.square() - z).sum(1)), lambda: setattr(weight, "data", new)


def counted_in_python() -> tuple[Any, Any]:
    calls = []

    def loss(z: Tensor) -> Tensor:
        calls.append(1)
        return (len(calls) * z.square() - z).sum(1)

    return loss, lambda: None


def counted_in_a_tensor() -> tuple[Any, Any]:
    calls = torch.zeros((), dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        calls.add_(1)
        return (calls * z.square() - z).sum(1)

    return loss, lambda: None


def branch_of_a_flag() -> tuple[Any, Any]:
    flags = {"fourth": False}

    def loss(z: Tensor) -> Tensor:
        return (z.pow(4) if flags["fourth"] else z.square()).sum(1) - z.sum(1)

    return loss, lambda: flags.update(fourth=True)


def one_element_of_a_buffer() -> tuple[Any, Any]:
    """One task's."""
    target = torch.zeros(2, 2, dtype=torch.float64)
    return (
        lambda z: (z - target).square().sum(1),
        lambda: target[1].add_(1.0),
    )


def drawn_from_numpy() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return (lambda z: (float(draw.random()) * z.square() - z).sum(1)), lambda: None


WORLDS: list[World] = [
    name_of_a_number,
    name_in_a_helper,
    name_of_a_function,
    name_of_an_equal_parameter,
    name_of_a_constant_tensor,
    value_made_in_the_call,
    array,
    bound_method,
    callable_object,
    partial_of_a_list,
    dropout_module_in_eval,
    normalisation_in_eval,
    running_statistics_moved,
    buffer_refilled,
    parameter_swapped,
    counted_in_python,
    counted_in_a_tensor,
    branch_of_a_flag,
    one_element_of_a_buffer,
    drawn_from_numpy,
]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("policy", AGAIN, ids=repr)
def test_a_world_that_moved_on_is_noticed(policy: GradientPolicy, world: World) -> None:
    loss, change = world()
    latent = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    learned = torch.ones(2, dtype=torch.float64, requires_grad=True)
    adapter = LatentAdapter(0.1, differentiation=policy)
    refined = adapter(latent, lambda z: loss(z) + (learned * z).sum(1)).latent
    change()
    with pytest.raises(ChangedLossError, match=r"expected .* in the forward pass.* Unrolled\(\)"):
        refined.sum().backward()


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_world_is_no_error(world: World) -> None:
    """The control: the losses that do not count or draw are accepted where nothing changes."""
    if world in (counted_in_python, counted_in_a_tensor, drawn_from_numpy):
        return
    for policy in AGAIN:
        loss, _ = world()
        latent = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        refined = LatentAdapter(0.1, steps=2, differentiation=policy)(latent, loss).latent
        if refined.requires_grad:
            refined.sum().backward()


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference()], ids=repr)
def test_two_tasks_in_a_loop_of_a_module(policy: GradientPolicy) -> None:
    """The loss is 0 for either ``t`` at z = 0, so losses alone would not tell; right is -2."""
    weight = torch.tensor(1.0, requires_grad=True)
    program = (
        "total = 0\n"
        "for t in (1.0, 3.0):\n"
        "    loss = lambda z: (weight * t * z.sin() - z).sum(1)\n"
        "    total = total + adapter(torch.zeros(1, 1), loss).latent.sum()\n"
    )
    names = {
        "torch": torch,
        "weight": weight,
        "adapter": LatentAdapter(0.5, differentiation=policy),
    }
    exec(program, names)
    with pytest.raises(
        ChangedLossError, match=r"3\.0 as an argument of mul, in the forward pass 1"
    ):
        names["total"].backward()  # type: ignore[union-attr]
    weight.grad = None
    names["adapter"] = LatentAdapter(0.5)
    exec(program, names)
    names["total"].backward()  # type: ignore[union-attr]
    assert weight.grad == -2.0


# --- what must not be refused ---------------------------------------------------------------------


def gradients(policy: GradientPolicy, make: Callable[[], Any]) -> list[Tensor]:
    torch.manual_seed(0)
    loss, inputs = make()
    latent = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    refined = LatentAdapter(0.1, steps=2, differentiation=policy)(latent, loss).latent
    return list(torch.autograd.grad(refined.sin().sum(), [latent, *inputs]))


def weights() -> Tensor:
    return torch.randn(3, 3, dtype=torch.float64, requires_grad=True)


def kept_constant() -> Any:
    """Computed in the first call, as positions and masks are."""
    cache: dict[str, Tensor] = {}
    w = weights()

    def loss(z: Tensor) -> Tensor:
        if "mask" not in cache:
            cache["mask"] = torch.ones(3, dtype=torch.float64).cumsum(0) / 3
        return (torch.tanh(z @ w) * cache["mask"]).square().sum(1)

    return loss, [w]


def logged() -> Any:
    state = {"total": torch.zeros(()), "calls": 0}
    w = weights()

    def loss(z: Tensor) -> Tensor:
        losses = torch.tanh(z @ w).square().sum(1)
        state["total"] = state["total"] + losses.detach().mean()
        state["calls"] += 1
        return losses

    return loss, [w]


def normalised_in_training() -> Any:
    norm = nn.BatchNorm1d(3).double()
    w = weights()
    return (lambda z: torch.tanh(norm(z @ w)).square().sum(1)), [w]


def cumulative_statistics() -> Any:
    norm = nn.BatchNorm1d(3, momentum=None).double()
    w = weights()
    return (lambda z: torch.tanh(norm(z @ w)).square().sum(1)), [w]


def noise_in_a_buffer() -> Any:
    buffer = torch.zeros(3, dtype=torch.float64)
    w = weights()
    return (lambda z: torch.tanh(z @ w + buffer.normal_()).square().sum(1)), [w]


def data_from_an_array() -> Any:
    target, w = np.ones((2, 3)), weights()
    return (lambda z: (torch.tanh(z @ w) - torch.from_numpy(target)).square().sum(1)), [w]


def decided_by_the_data() -> Any:
    w = weights()

    def loss(z: Tensor) -> Tensor:
        hidden = torch.tanh(z @ w)
        scale = hidden.detach().abs().max().item()
        return (hidden / (1 + 0 * scale)).square().sum(1) if scale > 0 else hidden.sum(1)

    return loss, [w]


def mapped() -> Any:
    w, target = weights(), torch.randn(2, 3, dtype=torch.float64)
    one = torch.func.vmap(lambda z, t: (torch.tanh(z @ w) - t).square().sum())
    return (lambda z: one(z, target)), [w]


ACCEPTED = [
    kept_constant,
    logged,
    normalised_in_training,
    cumulative_statistics,
    noise_in_a_buffer,
    data_from_an_array,
    decided_by_the_data,
    mapped,
]


@pytest.mark.parametrize("make", ACCEPTED)
@pytest.mark.parametrize("policy", AGAIN[:3], ids=repr)
def test_what_makes_no_difference_is_accepted(
    policy: GradientPolicy, make: Callable[[], Any]
) -> None:
    tolerance = 1e-5 if policy == FiniteDifference(stencil="forward") else 1e-8
    torch.testing.assert_close(
        gradients(policy, make), gradients(Unrolled(), make), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("policy", AGAIN[:3], ids=repr)
def test_second_differentiation_sees_the_world_too(policy: GradientPolicy) -> None:
    """The pass of ``create_graph=True`` runs the loss by another way."""
    loss, change = name_of_a_number()
    latent = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    refined = LatentAdapter(0.1, differentiation=policy)(latent, loss).latent
    change()
    with pytest.raises(ChangedLossError, match=r"3\.0 as an argument of mul"):
        torch.autograd.grad(refined.sin().sum(), latent, create_graph=True)


def test_a_frozen_parameter_is_named() -> None:
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    latent = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    adapter = LatentAdapter(0.1, differentiation=Checkpointed())
    refined = adapter(latent, lambda z: (weight * z.square()).sum(1)).latent
    weight.requires_grad_(False)
    with pytest.raises(ChangedLossError, match="requires_grad=False"):
        refined.sum().backward()


@pytest.mark.parametrize("relative", [None, 0.05])
@pytest.mark.parametrize("activation", [F.relu, F.hardtanh, torch.sin])
def test_kinks_and_large_steps_are_no_changed_worlds(activation: Any, relative: Any) -> None:
    """A finite difference that strays looks at the latent itself before it complains."""
    torch.manual_seed(0)
    for _ in range(20):
        w, target = torch.randn(4, 32), torch.randn(8, 32)
        latent = torch.randn(8, 4, requires_grad=True)
        adapter = LatentAdapter(0.1, steps=2, differentiation=FiniteDifference(relative))
        refined = adapter(latent, lambda z: (activation(z @ w) - target).pow(2).mean(1)).latent  # noqa: B023
        refined.sin().sum().backward()


def test_what_no_operation_shows_is_found_by_its_values() -> None:
    """Written past autograd's counters: losses and gradients are compared."""
    for policy in AGAIN:
        weight = torch.ones(1, dtype=torch.float64)
        latent = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
        adapter = LatentAdapter(0.1, differentiation=policy)
        refined = adapter(latent, lambda z: (weight * z.square() - z).sum(1)).latent  # noqa: B023
        weight.data.mul_(1.5)
        if refined.requires_grad:
            with pytest.raises(ChangedLossError, match=r"a support loss of .* 3 tasks \(index"):
                refined.sum().backward()
