"""The adapter inside ``torch.func`` transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from metalearn import (
    Checkpointed,
    ClipGradient,
    DisconnectedLossError,
    FiniteDifference,
    FirstOrder,
    GradientDescent,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    MetalearnError,
    Momentum,
    NormaliseGradient,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
)

TRACEABLE = [Unrolled(), Truncated(1), FirstOrder()]
RULES = [GradientDescent(), Momentum(0.5, nesterov=True), ClipGradient(0.5), NormaliseGradient()]


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LATENT, WEIGHT, TARGET = random(4, 3), random(3, 2, seed=1), random(4, 2, seed=2)


def refine(
    adapter: LatentAdapter, latent: Tensor, weight: Tensor = WEIGHT, target: Tensor = TARGET
) -> Tensor:
    """Refined latent under a small decoder."""

    def loss(z: Tensor) -> Tensor:
        return (torch.tanh(z @ weight) - target).square().sum(1)

    refined: Tensor = adapter(latent, loss).latent
    return refined


def alone(adapter: LatentAdapter, latent: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The same for one task without its axis."""
    return refine(adapter, latent[None], weight, target[None])[0]


@pytest.fixture(params=RULES, ids=repr)
def update(request: pytest.FixtureRequest) -> UpdateRule:
    """Every rule that can be traced."""
    rule: UpdateRule = request.param
    return rule


@pytest.fixture(params=TRACEABLE, ids=repr)
def adapter(request: pytest.FixtureRequest, update: UpdateRule) -> LatentAdapter:
    """Every policy that can be traced, with every such rule and a learned step size."""
    size = LearnedStepSize(0.3, channels=3, steps=3).double()
    return LatentAdapter(size, steps=3, differentiation=request.param, update=update)


def backward(adapter: LatentAdapter) -> tuple[Tensor, Tensor, Tensor]:
    """Eager gradients in latent, weight and step size."""
    latent, weight = LATENT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    inputs = [latent, weight, *adapter.parameters()]
    loss = refine(adapter, latent, weight).sin().sum()
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return gradients[0], gradients[1], gradients[2]


def test_vmap_over_single_tasks_equals_the_batch(adapter: LatentAdapter) -> None:
    """With loss values and traces, and with an eager ``backward()`` around it."""
    latent, weight = LATENT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    mapped = vmap(alone, in_dims=(None, 0, None, 0))(adapter, latent, weight, TARGET)
    torch.testing.assert_close(mapped, refine(adapter, latent, weight))
    inputs = [latent, weight, *adapter.parameters()]
    received = torch.autograd.grad(
        mapped.sin().sum(), inputs, allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(received, backward(adapter))

    def norms(z: Tensor) -> tuple[Tensor, Tensor]:
        result = adapter(z[None], lambda z: z.cos().sum(1), trace=True, final_loss=True)
        return result.trace.step_norms[:, 0], result.losses[:, 0]

    traced = adapter(LATENT, lambda z: z.cos().sum(1), trace=True, final_loss=True)
    step_norms, losses = vmap(norms, out_dims=1)(LATENT)
    torch.testing.assert_close(step_norms, traced.trace.step_norms)
    torch.testing.assert_close(losses, traced.losses)


def test_grad_equals_backward(adapter: LatentAdapter) -> None:
    """In the latent, in what the loss closes over, and in the adapter's own parameters."""
    (name,) = dict(adapter.named_parameters())

    def loss(latent: Tensor, weight: Tensor, log_value: Tensor) -> Tensor:
        def support(z: Tensor) -> Tensor:
            return (torch.tanh(z @ weight) - TARGET).square().sum(1)

        return functional_call(adapter, {name: log_value}, (latent, support)).latent.sin().sum()

    inputs = (LATENT, WEIGHT, adapter.get_parameter(name).detach())
    received = grad(loss, argnums=(0, 1, 2))(*inputs)
    torch.testing.assert_close(received, backward(adapter))


def test_jacrev_equals_the_jacobian_of_autograd(adapter: LatentAdapter) -> None:
    """In the latent; blocks across tasks are exactly zero here too."""
    received = jacrev(lambda z: refine(adapter, z))(LATENT)
    expected = torch.autograd.functional.jacobian(lambda z: refine(adapter, z), LATENT)
    torch.testing.assert_close(received, expected)
    across = received.movedim(2, 1)[~torch.eye(4, dtype=torch.bool)]
    assert torch.equal(across, torch.zeros_like(across))


def test_second_derivatives_through_nested_transforms() -> None:
    """Third derivatives of the support loss equal those of nested autograd."""
    adapter = LatentAdapter(0.3, steps=2)

    def loss(weight: Tensor) -> Tensor:
        return refine(adapter, LATENT, weight).sin().sum()

    received = jacrev(jacrev(loss))(WEIGHT)
    torch.testing.assert_close(received, torch.autograd.functional.hessian(loss, WEIGHT))


def test_a_decoder_called_functionally() -> None:
    """Its parameters are arguments; per-task weights are mapped over; the module stays as it was.

    Gradients per example (one decoder for each task) are the rows of what the batch gives.
    """
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    adapter = LatentAdapter(0.3, steps=2)
    before = {name: value.detach().clone() for name, value in decoder.named_parameters()}

    def loss(weights: dict[str, Tensor], latent: Tensor, target: Tensor) -> Tensor:
        def support(z: Tensor) -> Tensor:
            return (functional_call(decoder, weights, (z,)) - target).square().sum(1)

        return adapter(latent, support).latent.sin().sum()

    whole = grad(loss)(before, LATENT, TARGET)
    rows = vmap(grad(loss), in_dims=(None, 0, 0))(before, LATENT.unsqueeze(1), TARGET.unsqueeze(1))
    for name, gradient in whole.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(rows[name].sum(0), gradient)
    for name, value in decoder.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None

    decoder.zero_grad()
    eager = adapter(LATENT, lambda z: (decoder(z) - TARGET).square().sum(1)).latent
    eager.sin().sum().backward()
    for name, value in decoder.named_parameters():
        torch.testing.assert_close(value.grad, whole[name])


def test_transforms_inside_the_support_loss() -> None:
    """A loss may be written for one task and mapped over tasks."""
    inside = vmap(lambda z, target: (torch.tanh(z @ WEIGHT) - target).square().sum())
    received = LatentAdapter(0.3, steps=2)(LATENT, lambda z: inside(z, TARGET)).latent
    torch.testing.assert_close(received, refine(LatentAdapter(0.3, steps=2), LATENT))


def test_no_grad_inside_vmap_gives_the_same_values() -> None:
    """Evaluation under vmap."""
    adapter = LatentAdapter(0.3, steps=2)
    with torch.no_grad():
        mapped = vmap(alone, in_dims=(None, 0, None, 0))(adapter, LATENT, WEIGHT, TARGET)
    torch.testing.assert_close(mapped, refine(adapter, LATENT))


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference(), Implicit()], ids=repr)
def test_a_policy_with_its_own_backward_is_refused_by_name(policy: GradientPolicy) -> None:
    """With the policies that work instead."""
    adapter = LatentAdapter(0.3, differentiation=policy)
    expected = rf"expected .* traced, got {type(policy).__name__}\(.*Unrolled\(\), Truncated\(\)"
    with pytest.raises(MetalearnError, match=expected):
        grad(lambda z: refine(adapter, z).sum())(LATENT)


def test_an_optimiser_of_torch_is_refused_by_name() -> None:
    """Its state is not functional."""
    adapter = LatentAdapter(0.3, update=TorchOptimiser(torch.optim.SGD))
    with pytest.raises(MetalearnError, match="use GradientDescent or Momentum"):
        grad(lambda z: refine(adapter, z).sum())(LATENT)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, weight: torch.ones(4, dtype=torch.float64),
        lambda z, weight: z.detach().square().sum(1),
        lambda z, weight: (TARGET @ weight.T).square().sum(1),
    ],
    ids=["constant", "detached", "of a parameter only"],
)
@pytest.mark.parametrize("policy", TRACEABLE, ids=repr)
def test_a_loss_that_does_not_depend_on_the_latent_is_refused(
    policy: GradientPolicy, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """`torch.func.grad` alone would return zeros; under grad, under vmap of it and inside vmap."""
    adapter = LatentAdapter(0.3, steps=2, differentiation=policy)

    def objective(weight: Tensor) -> Tensor:
        return adapter(LATENT, lambda z: loss(z, weight)).latent.sum()

    with pytest.raises(DisconnectedLossError, match="depends on the latent"):
        grad(objective)(WEIGHT)
    with pytest.raises(DisconnectedLossError, match="depends on the latent"):
        vmap(grad(objective))(WEIGHT.expand(2, 3, 2))
    with pytest.raises(DisconnectedLossError, match="depends on the latent"):
        vmap(objective)(WEIGHT.expand(2, 3, 2).clone().requires_grad_())


@pytest.mark.parametrize("policy", TRACEABLE, ids=repr)
def test_losses_computed_before_the_call_are_refused(policy: GradientPolicy) -> None:
    """They require a gradient, but one of the transform outside: not in the latent."""
    adapter = LatentAdapter(0.3, steps=2, differentiation=policy)

    def objective(weight: Tensor) -> Tensor:
        before = (TARGET @ weight.T).square().sum(1)
        return adapter(LATENT, lambda z: before).latent.sum()

    with pytest.raises(DisconnectedLossError, match="depends on the latent"):
        grad(objective)(WEIGHT)
    with pytest.raises(DisconnectedLossError, match="depends on the latent"):
        vmap(objective)(WEIGHT.expand(2, 3, 2).clone().requires_grad_())
