"""A policy without a second derivative refuses one, whichever way it is asked for.

`once_differentiable` of torch refuses some ways only: https://github.com/pytorch/pytorch/issues/5848
"""

from __future__ import annotations

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
    Implicit,
    LatentAdapter,
    SecondDerivativeError,
    Truncated,
    Unrolled,
)

ONCE = [FiniteDifference(), FiniteDifference(stencil="forward"), Implicit(damping=1.0)]
TWICE = [Unrolled(), Checkpointed(), Truncated(1)]


def leaf(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64, requires_grad=True)


def gradients(policy: GradientPolicy, outer: Callable[[Tensor], Tensor]) -> Any:
    """``c z^3`` at c = 2, z = 1 with size .1: gradient of the outer loss in z and c."""
    z, c = leaf(1.0), leaf(2.0)
    refined = LatentAdapter(0.1, differentiation=policy)(z, lambda y: (c * y**3).sum(1)).latent
    found = torch.autograd.grad(
        outer(refined), [z, c], create_graph=True, allow_unused=True, materialize_grads=True
    )
    return z, c, found


@pytest.mark.parametrize("policy", TWICE, ids=repr)
def test_the_right_values(policy: GradientPolicy) -> None:
    """z' = z - .3 c z^2 = .4; d/dz z'^2 = 2 z' (1 - .6 c z) = -.16; its slopes by hand."""
    z, c, (in_z, _) = gradients(policy, lambda r: r.square().sum())
    second = torch.autograd.grad(in_z, [z, c])
    torch.testing.assert_close([x.item() for x in second], [-0.88, -0.36])


@pytest.mark.parametrize("inputs", ["z", "c", "both", "backward"])
@pytest.mark.parametrize("first", ["z", "c"])
@pytest.mark.parametrize("outer", [lambda r: r.sum(), lambda r: r.square().sum()], ids="12")
@pytest.mark.parametrize("policy", ONCE, ids=repr)
def test_a_second_derivative_is_refused_by_name(
    policy: GradientPolicy, outer: Any, first: str, inputs: str
) -> None:
    z, c, (in_z, in_c) = gradients(policy, outer)
    gradient = in_z if first == "z" else in_c
    if first == "z" and isinstance(policy, Implicit):
        return  # the start has no part in an optimum
    chosen = {"z": [z], "c": [c], "both": [z, c], "backward": None}[inputs]
    with pytest.raises(SecondDerivativeError, match=r"differentiate twice.*Checkpointed\(\)"):
        torch.autograd.backward(gradient.sum(), inputs=chosen, retain_graph=True)
    with pytest.raises(SecondDerivativeError, match=r"differentiate twice.*Checkpointed\(\)"):
        torch.autograd.grad(gradient.sum(), chosen or [c])


@pytest.mark.parametrize("policy", ONCE, ids=repr)
def test_a_graph_that_nobody_uses_is_no_error(policy: GradientPolicy) -> None:
    """``create_graph=True`` alone costs nothing but memory."""
    _, _, created = gradients(policy, lambda r: r.square().sum())
    z, c = leaf(1.0), leaf(2.0)
    refined = LatentAdapter(0.1, differentiation=policy)(z, lambda y: (c * y**3).sum(1)).latent
    plain = torch.autograd.grad(
        refined.square().sum(), [z, c], allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close([x.detach() for x in created], list(plain))


@pytest.mark.parametrize("inner", ONCE, ids=repr)
@pytest.mark.parametrize("outer", [*TWICE, Implicit(damping=1.0)], ids=repr)
def test_nested_adapters(outer: GradientPolicy, inner: GradientPolicy) -> None:
    """The inner adapter's gradient is differentiated by the outer's."""
    latent, c = leaf(1.0), leaf(2.0)

    def loss(z: Tensor) -> Tensor:
        inside = LatentAdapter(0.1, differentiation=inner)(z, lambda y: (c * y**3 + z * y).sum(1))
        return inside.latent.square().sum(1) + z.square().sum(1)

    with pytest.raises(SecondDerivativeError, match="differentiate twice"):
        LatentAdapter(0.1, differentiation=outer)(latent, loss).latent.sum().backward()


@pytest.mark.parametrize("inner", [Unrolled(), Checkpointed()], ids=repr)
@pytest.mark.parametrize("outer", [*TWICE, FiniteDifference(), FirstOrder()], ids=repr)
def test_nested_adapters_that_work(outer: GradientPolicy, inner: GradientPolicy) -> None:
    """Equal to the program written out with plain autograd."""

    def step(z: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(loss(z).sum(), z, create_graph=True)
        return z - 0.1 * gradient

    def outer_gradient(refine: Any) -> tuple[Tensor, ...]:
        latent, c = leaf(1.0), leaf(2.0)
        refined = refine(latent * 1.0, c)
        return torch.autograd.grad(refined.square().sum(), [latent, c], allow_unused=True)

    def ours(z: Tensor, c: Tensor) -> Tensor:
        def loss(z: Tensor) -> Tensor:
            adapter = LatentAdapter(0.1, differentiation=inner)
            return adapter(z, lambda y: (c * y**3).sum(1)).latent.square().sum(1)

        return LatentAdapter(0.1, differentiation=outer)(z, loss).latent

    def plain(z: Tensor, c: Tensor) -> Tensor:
        return step(z, lambda z: step(z, lambda y: (c * y**3).sum(1)).square().sum(1))

    received, expected = outer_gradient(ours), outer_gradient(plain)
    if outer == FirstOrder():
        refined = plain(leaf(1.0), leaf(2.0))
        torch.testing.assert_close(received[0], 2 * refined)
        return
    torch.testing.assert_close(received, expected, rtol=1e-6, atol=1e-7)
