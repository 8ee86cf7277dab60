"""Norms, statistics and step sizes are computed in float32 at least.

The kind of facebookresearch/fairscale#263 and tracel-ai/burn#5699: a norm in float16 overflows at
256, and the clipped gradient is zero. Here `ClipGradient(1.)` with a gradient of 150 moved nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import (
    Checkpointed,
    ClipGradient,
    FirstOrder,
    GradientDescent,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    NormaliseGradient,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
)
from metalearn.norms import scaled_norm, task_norm

HALF = [torch.float16, torch.bfloat16]
POLICIES = [Unrolled(), Checkpointed(), FirstOrder(), Truncated(1)]
RULES: dict[str, Callable[[], UpdateRule]] = {
    "descent": GradientDescent,
    "momentum": lambda: Momentum(0.9),
    "nesterov": lambda: Momentum(0.9, nesterov=True),
    "clip": lambda: ClipGradient(1.0),
    "clip, momentum": lambda: ClipGradient(1.0, then=Momentum(0.9)),
    "normalise": NormaliseGradient,
    "SGD": lambda: TorchOptimiser(torch.optim.SGD, momentum=0.9),
    "Adam": lambda: TorchOptimiser(torch.optim.Adam),
}


def slope(scale: float, dtype: torch.dtype) -> Tensor:
    """The gradient of a linear loss; every entry exact in the dtype."""
    return (scale * torch.tensor([[1.0, -0.5, 0.25, 1.0], [0.5, 1.0, 1.0, -1.0]])).to(dtype)


def refine(
    rule: UpdateRule,
    scale: float,
    size: float,
    dtype: torch.dtype,
    policy: GradientPolicy,
    **how: Any,
) -> Tensor:
    """Three steps from zero along a constant gradient."""
    gradient = slope(scale, dtype)
    adapter = LatentAdapter(size, steps=3, update=rule, differentiation=policy, **how)
    latent = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    return adapter(latent, lambda z: (z * gradient).sum(1).float()).latent


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("scale", [2.0**-14, 2.0**-7, 1.0, 150.0, 4096.0])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves_as_in_float64(
    name: str, scale: float, dtype: torch.dtype, policy: GradientPolicy
) -> None:
    """But for the rounding of the latent itself, once a step."""
    size = 0.5 if scale <= 1 else 0.5 / scale if "clip" not in name and name != "Adam" else 0.5
    received = refine(RULES[name](), scale, size, dtype, policy)
    exact = refine(RULES[name](), slope(scale, dtype)[0, 0].item(), size, torch.float64, policy)
    assert received.dtype == dtype
    assert (received != 0).all()
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(received.double(), exact, rtol=tolerance, atol=tolerance * 1e-3)


def test_the_report() -> None:
    """A gradient of 150 in every one of four entries, clipped to 1: half of that in each."""
    moved, _ = ClipGradient(1.0)(
        [torch.zeros(1, 4, dtype=torch.float16)],
        [torch.full((1, 4), 150.0, dtype=torch.float16)],
        [1.0],
        None,
    )
    assert torch.equal(moved[0], torch.full((1, 4), -0.5, dtype=torch.float16))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("factor", [2.0**-12, 2.0**12])
def test_learned_sizes_do_not_leave_the_range_of_the_latent(
    factor: float, dtype: torch.dtype
) -> None:
    """A size of 2e-8 is zero in float16 and one of 1e5 is infinite; the move is neither."""
    size = LearnedStepSize(2.0**-13 / factor if factor > 1 else 2.0**5 / factor)
    gradient = torch.full((1, 2), factor if factor > 1 else factor * 2.0**-3).to(dtype)
    latent = torch.zeros(1, 2, dtype=dtype)
    moved = LatentAdapter(size)(latent, lambda z: (z * gradient).sum(1)).latent
    expected = -size(0, 0).detach().double() * gradient.double()
    torch.testing.assert_close(moved.double(), expected, rtol=1e-2, atol=0)
    moved.float().sum().backward()
    (log_value,) = size.parameters()
    torch.testing.assert_close(
        log_value.grad.double().reshape(()), expected.sum(), rtol=1e-2, atol=0
    )


def test_sizes_of_a_half_module_are_computed_in_float32() -> None:
    """`.half()` rounds the logarithm; its exponential is not rounded again."""
    size = LearnedStepSize(1e-7).half()
    exact = size.log_value[0].detach().double().exp()[0]
    torch.testing.assert_close(size(0, 0).double(), exact, rtol=1e-6, atol=0)
    assert LearnedStepSize(0.1).double()(0, 0).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["small", "large"])
def test_norms_neither_vanish_nor_overflow(dtype: torch.dtype, where: str) -> None:
    """At the ends of every dtype: 3, 4, 12 and 84 times a power of two, norm 85 times it.

    float16 in float32, where nothing is lost; squares of float32 and float64 would be.
    """
    range_ = torch.finfo(dtype)
    unit = range_.tiny if where == "small" else 2.0 ** (int(math.log2(range_.max)) - 8)
    leaves = [torch.tensor([[3.0, 4.0]]), torch.tensor([[[12.0], [84.0]]])]
    norm = task_norm([(leaf.double() * unit).to(dtype) for leaf in leaves])
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(norm.double() / unit, torch.tensor([85.0], dtype=torch.float64))


def test_norms_have_the_derivatives_of_norms() -> None:
    """First and second; at zero none, where a floor is asked for."""
    values = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task_norm([x]), values)
    assert torch.autograd.gradgradcheck(lambda x: scaled_norm([x])[1] * scaled_norm([x])[0], values)
    zero = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(scaled_norm([zero])[1].sum(), zero)
    assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize("max_norm", [1.0, 9.0, 1e4])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-3, 1e25])
def test_clipping_is_right_and_differentiable_at_every_scale(max_norm: float, scale: float) -> None:
    """In float32, against float64: a factor whose derivative overflows gives NaN."""

    def clipped(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight = torch.full((1, 2), scale, dtype=dtype).requires_grad_()
        adapter = LatentAdapter(1.0, update=ClipGradient(max_norm))
        moved = adapter(torch.zeros(1, 2, dtype=dtype), lambda z: (z * weight).sum(1)).latent
        (gradient,) = torch.autograd.grad(moved[0, 0], weight)
        return moved.detach().double(), gradient.double()

    received, exact = clipped(torch.float32), clipped(torch.float64)
    torch.testing.assert_close(received, exact, rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_trace_is_measured_in_float32(dtype: torch.dtype) -> None:
    gradient = slope(512.0, dtype)
    trace = LatentAdapter(2.0**-9)(
        torch.zeros(2, 4, dtype=dtype), lambda z: (z * gradient).sum(1).float(), trace=True
    ).trace
    assert trace is not None
    torch.testing.assert_close(trace.gradient_norms[0], gradient.float().norm(dim=1))
    torch.testing.assert_close(trace.step_sizes, torch.full((1, 2), 2.0**-9))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_implicit_solves_in_float32(dtype: torch.dtype) -> None:
    """Inner products of cotangents of 300 overflow in float16. d z* / d c is the identity."""
    centre = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=dtype, requires_grad=True)
    adapter = LatentAdapter(0.5, steps=20, differentiation=Implicit())
    refined = adapter(
        torch.zeros(1, 4, dtype=dtype), lambda z: (z - centre).float().square().sum(1)
    ).latent
    (gradient,) = torch.autograd.grad(refined, centre, torch.full((1, 4), 300.0, dtype=dtype))
    torch.testing.assert_close(gradient.float(), torch.full((1, 4), 300.0), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_rule_of_ones_own_keeps_its_dtype_within_a_clipped_one(dtype: torch.dtype) -> None:
    """It is given float32 gradients; what it returns is rounded to the latent's dtype."""

    class Plain:
        def initial_state(self, leaves: Any) -> None:
            return None

        def __call__(self, leaves: Any, gradients: Any, sizes: Any, state: Any) -> Any:
            moved = [z - a * g for z, g, a in zip(leaves, gradients, sizes, strict=True)]
            return moved, None

    adapter = LatentAdapter(1.0, steps=2, update=ClipGradient(1.0, then=Plain()))
    seen = []

    def loss(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        return (150 * z).sum(1)

    refined = adapter(torch.zeros(1, 4, dtype=dtype), loss).latent
    assert set(seen) == {dtype}
    assert torch.equal(refined, torch.full((1, 4), -1.0, dtype=dtype))
