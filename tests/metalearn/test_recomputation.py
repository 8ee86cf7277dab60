"""`recomputed`: the same gradients to the bit, without the results."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metalearn import (
    Checkpointed,
    GradientPolicy,
    LatentAdapter,
    Unrolled,
    recomputation,
    recomputed,
    recomputed_gelu,
)

POLICIES = [Unrolled(recompute=True), Checkpointed(recompute=True)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


class Perceptron:
    """A norm and two linear layers around a GELU, as in a transformer's block."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.first = random(12, 4, dtype=dtype)
        self.second = random(4, 12, seed=1, dtype=dtype)
        self.scale = random(4, seed=2, dtype=dtype)
        self.weights = [self.first, self.second, self.scale]

    def loss(self, z: Tensor) -> Tensor:
        for _ in range(2):
            normed = recomputed(lambda x, w: F.layer_norm(x, (4,), w), z, self.scale)
            hidden = recomputed_gelu(F.linear(normed, self.first))
            z = z + F.linear(hidden, self.second)
        return z.square().mean((1, 2))

    def plain(self, z: Tensor) -> Tensor:
        for _ in range(2):
            hidden = F.gelu(F.linear(F.layer_norm(z, (4,), self.scale), self.first))
            z = z + F.linear(hidden, self.second)
        return z.square().mean((1, 2))


def outer(
    loss: Callable[[Tensor], Tensor], policy: GradientPolicy, latent: Tensor, steps: int = 2
) -> Tensor:
    adapter = LatentAdapter(0.3, steps=steps, differentiation=policy)
    return adapter(latent, loss).latent.square().sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_gradients_are_the_same_to_the_bit(policy: GradientPolicy, dtype: torch.dtype) -> None:
    model, latent = Perceptron(dtype), random(3, 5, 4, seed=3, dtype=dtype)
    inputs = [latent, *model.weights]
    expected = torch.autograd.grad(outer(model.plain, Unrolled(), latent), inputs)
    received = torch.autograd.grad(outer(model.loss, policy, latent), inputs)
    assert all(float(x.abs().max()) > 0 for x in expected)
    if isinstance(policy, Unrolled):
        assert all(map(torch.equal, received, expected))
    else:
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(received, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_further_derivatives_too(policy: GradientPolicy) -> None:
    model, latent = Perceptron(), random(2, 3, 4, seed=3)
    inputs = [latent, *model.weights]

    def second(loss: Callable[[Tensor], Tensor], policy: GradientPolicy) -> tuple[Tensor, ...]:
        total = outer(loss, policy, latent, steps=1)
        first = torch.autograd.grad(total, inputs, create_graph=True)
        return torch.autograd.grad(sum(x.sin().sum() for x in first), inputs)

    torch.testing.assert_close(second(model.loss, policy), second(model.plain, Unrolled()))


@pytest.mark.parametrize("recompute", [True, False])
def test_results_are_freed(recompute: bool) -> None:
    """Once the inner step is done; without the policy's setting the outer graph holds them."""
    model, latent, made = Perceptron(), random(2, 3, 4, seed=3), []

    def watched(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        result = function(*inputs)
        made.append(weakref.ref(result.untyped_storage()))
        return result

    def loss(z: Tensor) -> Tensor:
        normed = watched(recomputed, lambda x, w: F.layer_norm(x, (4,), w), z, model.scale)
        hidden = watched(recomputed_gelu, F.linear(normed, model.first))
        return F.linear(hidden, model.second).square().mean((1, 2))

    total = outer(loss, Unrolled(recompute=recompute), latent, steps=1)
    assert [one() is None for one in made] == [recompute] * 2
    total.backward()


def test_what_is_written_to_before_the_backward_pass_is_an_error() -> None:
    """As without it, where torch itself looks."""
    model, latent = Perceptron(), random(2, 3, 4, seed=3)
    total = outer(model.loss, Unrolled(recompute=True), latent)
    with torch.no_grad():
        model.scale.add_(1.0)  # an argument of the norm
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    model, latent = Perceptron(), random(2, 3, 4, seed=3)
    total = outer(model.loss, Unrolled(recompute=True), latent)
    with torch.no_grad():
        model.second.add_(1.0)  # a tensor that is saved itself
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_result_that_is_written_to_is_saved() -> None:
    """Its recipe would give what it was before."""
    weight, latent = random(3), random(2, 3, seed=1)

    def loss(z: Tensor) -> Tensor:
        return (recomputed(torch.sin, z).mul_(2.0) * weight * z).sum(1)

    def plain(z: Tensor) -> Tensor:
        return (torch.sin(z) * 2.0 * weight * z).sum(1)

    inputs = [latent, weight]
    received = torch.autograd.grad(outer(loss, Unrolled(recompute=True), latent), inputs)
    expected = torch.autograd.grad(outer(plain, Unrolled(), latent), inputs)
    torch.testing.assert_close(received, expected)


def test_views_of_a_result_are_computed_again() -> None:
    weight, latent = random(2, 3), random(4, 3, 4, seed=1)

    def loss(z: Tensor) -> Tensor:
        part = recomputed(torch.sin, z)[:, :, 1:3].transpose(1, 2)  # (B, 2, 3)
        return (part * weight * z.cos()[:, :, :2].transpose(1, 2)).sum((1, 2))

    inputs = [latent, weight]
    received = torch.autograd.grad(outer(loss, Unrolled(recompute=True), latent), inputs)
    expected = torch.autograd.grad(outer(loss, Unrolled(), latent), inputs)
    assert all(map(torch.equal, received, expected))


def test_nothing_is_noted_elsewhere() -> None:
    """Without a policy that asks for it, in other threads, in transforms, inside other hooks."""
    model, latent = Perceptron(), random(2, 3, 4, seed=3)
    assert type(recomputed_gelu(latent).grad_fn).__name__ == "GeluBackward0"
    with recomputation.recomputing():
        kind = type(recomputed_gelu(latent).grad_fn).__name__
        assert kind == "_GeluBackward"
        others: list[str] = []

        def run() -> None:
            others.append(type(recomputed_gelu(latent).grad_fn).__name__)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert others == ["GeluBackward0"]
        with torch.autocast("cpu", torch.bfloat16):
            assert type(recomputed_gelu(latent).grad_fn).__name__ == "GeluBackward0"
        losses = torch.func.vmap(lambda z: model.loss(z[None]).sum())(latent.detach())
        torch.testing.assert_close(losses, model.plain(latent.detach()))
    with saved_tensors_hooks(lambda x: x, lambda x: x), recomputation.recomputing():
        assert type(recomputed_gelu(latent).grad_fn).__name__ == "GeluBackward0"


def test_activation_checkpointing_around_an_adapter() -> None:
    model, latent = Perceptron(), random(2, 3, 4, seed=3)
    inputs = [latent, *model.weights]
    policy = Unrolled(recompute=True)
    whole = checkpoint(lambda z: outer(model.loss, policy, z), latent, use_reentrant=False)
    expected = torch.autograd.grad(outer(model.plain, Unrolled(), latent), inputs)
    torch.testing.assert_close(torch.autograd.grad(whole, inputs), expected)
