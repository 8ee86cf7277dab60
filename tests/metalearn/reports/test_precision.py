"""Overflow under a gradient scaler, and 16 bits under finite differences.

A scaler's first steps overflow by design (https://pytorch.org/docs/stable/amp.html): gradients
that are not finite are skipped, an exception is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    PrecisionError,
    Unrolled,
)

ALL = [
    Unrolled(),
    Checkpointed(),
    FirstOrder(),
    FiniteDifference(),
    FiniteDifference(stencil="forward"),
    Implicit(damping=5.0),
]


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_an_overflowed_cotangent_gives_gradients_that_are_not_finite(
    policy: GradientPolicy, bad: float
) -> None:
    """As a scaler expects of every policy; the other tasks' latents learn as always."""
    weight = torch.full((3, 3), 0.5, requires_grad=True)

    def learn(scale: Tensor) -> Tensor:
        latent = torch.ones(2, 3, requires_grad=True)
        adapter = LatentAdapter(0.1, differentiation=policy)
        refined = adapter(latent, lambda z: torch.tanh(z @ weight).square().sum(1)).latent
        weight.grad = None
        ((refined if refined.requires_grad else latent) * 3 * scale).sum().backward()
        return torch.zeros(2, 3) if latent.grad is None else latent.grad

    expected = learn(torch.ones(2, 1))
    received = learn(torch.tensor([[bad], [1.0]]))
    torch.testing.assert_close(received[1], expected[1], rtol=1e-3, atol=1e-3)
    if policy != FirstOrder():
        assert weight.grad is not None
        assert not weight.grad.isfinite().all()


@pytest.mark.parametrize("policy", [Unrolled(), FiniteDifference(), Checkpointed()], ids=repr)
def test_a_gradient_scaler_skips_its_first_steps(policy: GradientPolicy) -> None:
    """It lowers its scale until nothing overflows, and then learns."""
    torch.manual_seed(0)
    decoder = nn.Linear(3, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    optimiser = torch.optim.SGD(decoder.parameters(), lr=0.1)
    adapter = LatentAdapter(0.1, differentiation=policy)
    before = decoder.weight.detach().clone()
    latent = torch.full((2, 3), 30.0)
    for _ in range(12):
        refined = adapter(latent, lambda z: decoder(z).square().sum(1)).latent
        optimiser.zero_grad()
        scaler.scale(refined.square().mean()).backward()
        scaler.step(optimiser)
        scaler.update()
    assert decoder.weight.isfinite().all()
    assert scaler.get_scale() < 2.0**126
    assert not torch.equal(before, decoder.weight)


@pytest.mark.parametrize("size", [1e-25, 1e-18, 1e15, 1e25])
def test_the_size_of_the_cotangent_does_not_matter(size: float) -> None:
    """Its square may vanish or overflow in float32."""
    weight = torch.full((3, 3), 0.5)
    found = []
    for policy in (Unrolled(), FiniteDifference()):
        latent = torch.ones(2, 3, requires_grad=True)
        adapter = LatentAdapter(0.1, differentiation=policy)
        refined = adapter(latent, lambda z: torch.tanh(z @ weight).square().sum(1)).latent
        found.append(torch.autograd.grad((refined * size).sum(), latent)[0] / size)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


HALVES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "module in half": lambda m, z: m.half()(z.half()).float().square().sum(1),
    "module in bfloat16": lambda m, z: m.bfloat16()(z.bfloat16()).float().square().sum(1),
    "losses in half": lambda m, z: m(z).square().sum(1).half(),
    "weights in half only": lambda m, z: (z @ m.half().weight.float()).square().sum(1),
    "a middle in half": lambda m, z: m(z).half().float().square().sum(1),
}


def autocasting(m: nn.Module, z: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m(z).float().square().sum(1)


HALVES["autocast inside"] = autocasting


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("full_precision", [True, False])
def test_16_bits_in_the_support_loss_are_refused(name: str, full_precision: bool) -> None:
    """A difference of values rounded to three digits has no digits left."""
    torch.manual_seed(0)
    decoder = nn.Linear(3, 3)
    adapter = LatentAdapter(0.1, differentiation=FiniteDifference(), full_precision=full_precision)
    loss: Any = HALVES[name]
    with pytest.raises(PrecisionError, match=r"float32 or float64.*got .*float\(\).*FirstOrder"):
        adapter(torch.randn(2, 3, requires_grad=True), lambda z: loss(decoder, z))


def test_constants_in_16_bits_are_exact() -> None:
    """Data sets are stored so."""
    target = torch.ones(2, 3).half()
    latent = torch.zeros(2, 3, requires_grad=True)
    adapter = LatentAdapter(0.25, differentiation=FiniteDifference())
    adapter(latent, lambda z: (z - target.float()).square().sum(1)).latent.sum().backward()
    torch.testing.assert_close(latent.grad, torch.full((2, 3), 0.5), rtol=1e-3, atol=1e-3)
