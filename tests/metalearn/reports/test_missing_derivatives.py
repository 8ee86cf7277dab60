"""Operations without a second derivative are named, whichever they are and whenever they come.

Fused attention: https://github.com/pytorch/pytorch/issues/127523; cdist:
https://github.com/pytorch/pytorch/issues/15253; weight_norm and custom functions likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    plain_attention,
)

EXACT = [Unrolled(), Checkpointed(), Truncated(1), Implicit(damping=1.0)]
POINTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([[0, 1, 2], [2, 0, 1]])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Once(torch.autograd.Function):
    """Marked: with a constant cotangent torch says nothing, and the derivative is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Kernel(torch.autograd.Function):
    """As of a compiled extension: its backward pass leaves no graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (3 * x**2 * g).detach()


class Straight(torch.autograd.Function):
    """A straight-through estimator: its constant derivative is meant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def fused(z: Tensor) -> Tensor:
    heads = z.unsqueeze(1)
    return F.scaled_dot_product_attention(heads, heads, heads).flatten(1).sum(1)


def bags(z: Tensor) -> Tensor:
    return F.embedding_bag(INDEX + 3 * torch.arange(2)[:, None], z.reshape(6, 4)).square().sum(1)


def weighted_bags(z: Tensor) -> Tensor:
    table = torch.ones(3, 4)
    weights = z[:, :, 0]
    return F.embedding_bag(INDEX, table, per_sample_weights=weights, mode="sum").square().sum(1)


LOSSES = {
    "attention": fused,
    "cdist": lambda z: torch.cdist(z, POINTS).sum((1, 2)),
    "cdist, p = 1": lambda z: torch.cdist(z, POINTS, p=1.0).square().sum((1, 2)),
    "embedding_bag": bags,
    "embedding_bag, weights": weighted_bags,
    "multi_margin_loss": lambda z: F.multi_margin_loss(
        z[:, 0], torch.tensor([0, 1]), reduction="none"
    ),
    "transformer layer without dropout": nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.0, batch_first=True
    ),
    "once_differentiable": lambda z: Once.apply(z).sum((1, 2)),
    "once_differentiable, inside": lambda z: Once.apply(z).square().sum((1, 2)),
    "kernel": lambda z: Kernel.apply(z).sum((1, 2)),
    "kernel, inside": lambda z: Kernel.apply(z.sin()).square().sum((1, 2)),
    "compiled": torch.compile(lambda z: z.sin().square().sum((1, 2)), backend="aot_eager"),
}


def losses(name: str) -> Callable[[Tensor], Tensor]:
    function = LOSSES[name]
    return lambda z: function(z).reshape(len(z), -1).sum(1) + 0 * z.sum((1, 2))


def latent() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


# dynamo looks at the `.grad` of every argument.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("policy", EXACT, ids=repr)
def test_exact_policies_name_it(policy: GradientPolicy, name: str) -> None:
    """At the call, or for `Implicit` in the backward pass."""
    weight = torch.ones(4, requires_grad=True)
    loss = losses(name)
    adapter = LatentAdapter(0.01, differentiation=policy)

    def learn() -> None:
        refined = adapter(latent(), lambda z: loss(z) + (z * weight).sum((1, 2))).latent
        assert isinstance(policy, Implicit)
        refined.sum().backward()

    with pytest.raises(SecondDerivativeError, match=r"expected .*got .*FiniteDifference\(\)"):
        learn()


@pytest.mark.parametrize("name", LOSSES)
def test_first_order_policies_take_it(name: str) -> None:
    """And finite differences equal those of the outer loss itself."""
    if name.startswith("once") or name == "cdist, p = 1":
        return
    loss, start = losses(name), latent()
    for policy in (FirstOrder(), FiniteDifference()):
        LatentAdapter(0.01, differentiation=policy)(start, loss).latent.sum().backward()


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), Truncated(1)], ids=repr)
def test_products_of_one_factory(policy: GradientPolicy) -> None:
    """The code is the same, what it calls is not."""

    def make(attend: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def loss(z: Tensor) -> Tensor:
            heads = z.unsqueeze(1)
            return attend(heads, heads, heads).square().sum((1, 2, 3))

        return loss

    adapter = LatentAdapter(0.1, differentiation=policy)
    for _ in range(2):
        adapter(latent(), make(plain_attention)).latent.sum().backward()
    with pytest.raises(SecondDerivativeError, match=r"ScaledDotProduct|NotImplemented"):
        adapter(latent(), make(F.scaled_dot_product_attention))


@pytest.mark.parametrize("bad", [Once, Kernel])
@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed()], ids=repr)
def test_a_setting_that_the_loss_reads(policy: GradientPolicy, bad: Any) -> None:
    """Here the graphs have equally many nodes, too."""
    setting: dict[str, Any] = {}

    def make(function: Any) -> Callable[[Tensor], Tensor]:
        return lambda z: function(z).square().sum((1, 2))

    adapter = LatentAdapter(0.1, differentiation=policy)
    setting["f"] = torch.tanh
    adapter(latent(), make(torch.tanh)).latent.sum().backward()
    with pytest.raises(SecondDerivativeError):
        adapter(latent(), make(bad.apply))

    def reads(z: Tensor) -> Tensor:
        found: Tensor = setting["f"](z).square().sum((1, 2))
        return found

    adapter(latent(), reads).latent.sum().backward()
    setting["f"] = bad.apply
    with pytest.raises(SecondDerivativeError):
        adapter(latent(), reads).latent.sum().backward()


def test_what_the_latent_does_not_go_through_may_lack_it() -> None:
    """An encoder, or a decoder's weights, need one derivative only."""
    weight = torch.ones(4, requires_grad=True)
    for policy in (Unrolled(), Checkpointed(), Truncated(1)):
        start = latent()
        memory = fused(Kernel.apply(start)).reshape(2, 1, 1)
        refined = LatentAdapter(0.1, differentiation=policy)(
            start * memory,
            lambda z: ((z * Once.apply(weight) - memory) ** 2).sum((1, 2)),  # noqa: B023
        ).latent
        refined.sum().backward()


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed()], ids=repr)
def test_a_straight_through_estimator_is_meant(policy: GradientPolicy) -> None:
    """L = .5 round(z)^2 has gradient round(z), whose estimated derivative is 1."""
    start = latent()
    adapter = LatentAdapter(0.5, differentiation=policy)
    refined = adapter(start, lambda z: 0.5 * Straight.apply(z).square().sum((1, 2))).latent
    (gradient,) = torch.autograd.grad(refined.sum(), start)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5))


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed()], ids=repr)
def test_weight_norm_whose_second_derivative_torch_gets_wrong(policy: GradientPolicy) -> None:
    """Refused with the latent in its weights, right with the latent in its input."""
    x = torch.randn(2, 4, dtype=torch.float64)
    g = torch.rand(3, 1, dtype=torch.float64) + 0.5
    adapter = LatentAdapter(0.1, differentiation=policy)
    v = torch.randn(1, 3, 4, dtype=torch.float64)
    with pytest.raises(SecondDerivativeError, match=r"weight_norm.*is wrong; write it out"):
        adapter(v, lambda v: (x @ torch._weight_norm(v[0], g, 0).T).sin().sum().reshape(1))

    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double())

    def refine(x: Tensor) -> Tensor:
        refined: Tensor = adapter(x, lambda z: layer(z).sin().sum(1)).latent
        return refined

    assert torch.autograd.gradcheck(refine, x.requires_grad_())


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_under_a_compiler_the_error_is_ours(backend: str) -> None:
    """Not a traceback of the backend."""
    adapter = LatentAdapter(0.1)

    def outer(z: Tensor) -> Tensor:
        refined: Tensor = adapter(z, fused).latent.sum()
        return refined

    compiled = torch.compile(outer, fullgraph=True, backend=backend)
    with pytest.raises(SecondDerivativeError, match=r"twice.*plain_attention"):
        compiled(latent())
    partly = torch.compile(outer, backend=backend)
    with pytest.raises(SecondDerivativeError, match=r"twice.*plain_attention"):
        partly(latent())
