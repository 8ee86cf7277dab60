"""`FiniteDifference`: its accuracy, what it captures, what it replays, and what it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import (
    ClipGradient,
    FiniteDifference,
    FirstOrder,
    GradientDescent,
    GradientPolicy,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    NormaliseGradient,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
    plain_attention,
)
from metamae.config.presets import make_config
from metamae.inputs import Signal
from metamae.methods.building import build_method
from metamae.methods.metamae import MetaMAE

Gradients = dict[str, Tensor]


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """A seeded float64 normal tensor; different seeds for different roles in a test."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


def gradients_of(
    policy: GradientPolicy,
    loss: Callable[[Tensor], Tensor],
    latent: Tensor,
    inputs: Sequence[Tensor],
    **settings: Any,
) -> tuple[Tensor, ...]:
    """Outer gradients in the latent and in ``inputs``."""
    latent = latent.detach().clone().requires_grad_()
    adapter = LatentAdapter(0.3, steps=2, differentiation=policy, **settings)
    refined = adapter(latent, loss).latent
    weights = torch.arange(1.0, refined.numel() + 1).view_as(refined).to(refined)
    return torch.autograd.grad(
        (weights * refined.sin()).sum(),
        [latent, *inputs],
        allow_unused=True,
        materialize_grads=True,
    )


def assert_like_unrolled(
    make: Callable[[], tuple[Callable[[Tensor], Tensor], list[Tensor]]],
    latent: Tensor,
    **settings: Any,
) -> None:
    """To eight digits in float64; ``make`` builds the loss and its inputs anew for each policy."""
    loss, inputs = make()
    expected = gradients_of(Unrolled(), loss, latent, inputs, **settings)
    loss, inputs = make()
    received = gradients_of(FiniteDifference(), loss, latent, inputs, **settings)
    for got, want in zip(received, expected, strict=True):
        assert (got - want).norm() <= 1e-8 * want.norm().clamp(min=1)


# --- accuracy -------------------------------------------------------------------------------------

SPEC = Signal(name="signal", channels=6, length=128, token_length=4)
SMALLER = [
    "encoder={width: 32, depth: 1, heads: 4}",
    "decoder={width: 32, depth: 2, heads: 4}",
    "adaptation={step_size: 20.0}",
]


def metamae_gradients(
    policy: GradientPolicy, dtype: torch.dtype, steps: int, update: UpdateRule | None
) -> Gradients:
    """Gradients of a whole MetaMAE step in float64 copies, weights as if in training."""
    method = build_method(make_config("sensors", overrides=SMALLER), (SPEC,)).to(dtype)
    assert isinstance(method, MetaMAE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(dtype))
    method.meta.adapter = LatentAdapter(20.0, steps=steps, differentiation=policy, update=update)
    batch = {"signal": torch.randn(4, 6, 128, generator=generator).to(dtype)}
    method(batch, method.draw(4, generator)).loss.backward()
    return {n: p.grad.double() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("steps", "update"), [(1, None), (3, None), (3, Momentum(0.5)), (2, ClipGradient(0.02))]
)
def test_the_second_order_part_of_metamae(steps: int, update: UpdateRule | None) -> None:
    """Alone, so that the first-order part cannot hide an error: 1e-3 in float32, 1e-8 in float64.

    Per parameter as well, where the part is not negligible.
    """
    exact = metamae_gradients(Unrolled(), torch.float64, steps, update)
    for dtype, bound in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        first = metamae_gradients(FirstOrder(), dtype, steps, update)
        received = metamae_gradients(FiniteDifference(), dtype, steps, update)
        base = (
            first
            if dtype == torch.float64
            else metamae_gradients(FirstOrder(), torch.float64, steps, update)
        )
        part = {n: exact[n] - base.get(n, torch.zeros(())) for n in exact}
        whole = torch.cat([p.flatten() for p in part.values()]).norm()
        assert whole > 5e-3 * torch.cat([g.flatten() for g in exact.values()]).norm()
        error = {n: received[n] - first.get(n, torch.zeros(())) - part[n] for n in exact}
        assert torch.cat([e.flatten() for e in error.values()]).norm() < bound * whole
        for name, value in part.items():
            if value.norm() > 1e-3 * whole:
                assert error[name].norm() < 3 * bound * value.norm(), name


@pytest.mark.parametrize(
    "update",
    [
        GradientDescent(),
        Momentum(0.6, nesterov=True),
        NormaliseGradient(),
        TorchOptimiser(torch.optim.Adam, betas=(0.8, 0.9)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("settings", [{}, {"channels": 3}, {"channels": 3, "steps": 2}], ids=str)
def test_step_sizes_and_rules_are_differentiated_exactly(
    update: UpdateRule, settings: dict[str, Any]
) -> None:
    """Finite differences only stand in for the gradient's own derivative."""
    results = []
    for policy in (Unrolled(), FiniteDifference()):
        size = LearnedStepSize(0.2, **settings).double()
        latent, weight = random(2, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
        adapter = LatentAdapter(size, steps=2, differentiation=policy, update=update)
        refined = adapter(latent, lambda z, w=weight: (torch.tanh(z @ w) - 1).square().sum(1))
        inputs = [latent, weight, *size.parameters()]
        results.append(torch.autograd.grad(refined.latent.sin().sum(), inputs))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-8)


def test_only_the_learned_step_size_needs_no_second_derivative() -> None:
    """One step: the gradient in the step size is first-order, so it is exact to the last digits."""
    size = LearnedStepSize(0.2, channels=3).double()
    loss = lambda z: z.cos().sum(1)  # noqa: E731
    results = []
    for policy in (Unrolled(), FiniteDifference()):
        refined = LatentAdapter(size, differentiation=policy)(random(2, 3), loss).latent
        results.append(torch.autograd.grad(refined.sin().sum(), size.parameters()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("stencil", "power", "scale"), [("central", 2, 1 / 6), ("forward", 1, -1 / 2)]
)
def test_the_error_of_a_stencil_has_the_order_and_constant_it_should(
    stencil: Any, power: int, scale: float
) -> None:
    """For L = e^z, v = -1 (the step is downhill), epsilon = r z: the error of L'' = e^z."""
    for relative in (2e-2, 1e-2):
        latent = torch.full((1, 1), 1.5, dtype=torch.float64, requires_grad=True)
        policy = FiniteDifference(relative_step=relative, stencil=stencil)
        refined = LatentAdapter(1.0, differentiation=policy)(latent, lambda z: z.exp().sum(1))
        (gradient,) = torch.autograd.grad(refined.latent.sum(), latent)
        error = (1 - gradient.item()) / latent.exp().item() - 1
        assert error == pytest.approx(scale * (1.5 * relative) ** power, rel=0.03)


@settings(max_examples=15, deadline=None)
@given(
    latent_scale=st.floats(-6, 6),
    cotangent_scale=st.floats(-12, 12),
    task_scale=st.floats(-6, 6),
)
def test_scales_of_latent_and_cotangent_do_not_matter(
    latent_scale: float, cotangent_scale: float, task_scale: float
) -> None:
    """The step is relative to both norms, for every task on its own.

    L(s z) of a latent that is s times smaller is the same problem: only relative steps notice.
    """
    weight = random(3, 3, seed=1, requires_grad=True)
    scales = torch.tensor([[10.0**latent_scale], [10.0**task_scale]], dtype=torch.float64)
    latent = (random(2, 3) * scales).requires_grad_()
    size = LearnedStepSize(1.0).double()
    results = []
    for policy in (Unrolled(), FiniteDifference()):
        adapter = LatentAdapter(size, differentiation=policy)
        refined = adapter(
            latent, lambda z: 0.1 * (torch.tanh(z / scales @ weight) - 1).square().sum(1)
        ).latent
        (moved,) = torch.autograd.grad(
            (refined - latent) / scales,
            weight,
            grad_outputs=torch.full((2, 3), 10.0**cotangent_scale, dtype=torch.float64) * scales**2,
        )
        results.append(moved)
    assert (results[1] - results[0]).norm() < 1e-8 * results[0].norm()


def test_a_latent_at_the_origin_falls_back_to_an_absolute_step() -> None:
    """Zero has no scale: one task at the origin, one elsewhere."""
    latent = random(2, 3)
    latent[0] = 0.0

    def make() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        weight = random(3, 3, seed=1, requires_grad=True)
        return (lambda z: (torch.tanh(z @ weight) - 1).square().sum(1)), [weight]

    assert_like_unrolled(make, latent)


def test_tasks_without_a_cotangent_get_none() -> None:
    """An outer loss over some tasks: the others contribute exactly nothing, and no NaN."""
    latent, weight = random(3, 3, requires_grad=True), random(3, 3, seed=1, requires_grad=True)
    results = []
    for tasks in ([0, 1, 2], [1]):
        adapter = LatentAdapter(0.3, steps=2, differentiation=FiniteDifference())
        chosen = latent[tasks]
        refined = adapter(chosen, lambda z: (torch.tanh(z @ weight) - 1).square().sum(1)).latent
        only = refined[tasks.index(1)].sin().sum()
        results.append(torch.autograd.grad(only, [latent, weight]))
    assert torch.equal(results[0][0][[0, 2]], torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-9)

    refined = LatentAdapter(0.3, differentiation=FiniteDifference())(
        latent, lambda z: (torch.tanh(z @ weight) - 1).square().sum(1)
    ).latent
    zero = torch.autograd.grad((0 * refined).sum(), [latent, weight])
    assert all(torch.equal(g, torch.zeros_like(g)) for g in zero)


# --- kernels without second derivative ------------------------------------------------------------


@pytest.mark.parametrize("stencil", ["central", "forward"])
def test_fused_attention_gets_the_gradient_of_plain_attention(stencil: Any) -> None:
    """The reason for the policy."""

    def make(attend: Callable[..., Tensor]) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        weight = random(8, 8, seed=1, requires_grad=True)

        def loss(z: Tensor) -> Tensor:
            heads = (z @ weight).unsqueeze(1)
            return attend(heads, heads, heads).square().mean(dim=(1, 2, 3))

        return loss, [weight]

    latent = random(2, 4, 8)
    loss, inputs = make(plain_attention)
    expected = gradients_of(Unrolled(), loss, latent, inputs)
    loss, inputs = make(F.scaled_dot_product_attention)
    received = gradients_of(FiniteDifference(stencil=stencil), loss, latent, inputs)
    for got, want in zip(received, expected, strict=True):
        assert (got - want).norm() < (1e-7 if stencil == "central" else 1e-5) * want.norm()


def test_it_cannot_be_differentiated_twice_itself() -> None:
    """Its backward pass is numbers, and says so."""
    latent = random(2, 3, requires_grad=True)
    refined = LatentAdapter(0.3, differentiation=FiniteDifference())(
        latent, lambda z: z.cos().sum(1)
    ).latent
    (gradient,) = torch.autograd.grad(refined.sin().sum(), latent, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


# --- what it captures -----------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """``z^3 m``, by hand."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, m: Tensor) -> Tensor:
        ctx.save_for_backward(z, m)
        return z**3 * m

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z, m = ctx.saved_tensors
        return 3 * z * z * m * gradient, z**3 * gradient


def through_module() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return (lambda z: (decoder(z) - 1).square().sum(1)), list(decoder.parameters())


def through_intermediate_result() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A decoder that looks at the encoder's output, which has a graph of its own."""
    weight = random(3, 3, seed=1, requires_grad=True)
    memory = torch.tanh(random(2, 3, seed=2) @ weight)
    return (lambda z: (torch.tanh(z) - memory).square().sum(1) + (z * memory).cos().sum(1)), [
        weight
    ]


def through_custom_function() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    weight = random(2, 3, seed=1, requires_grad=True)
    return (lambda z: 0.1 * Cube.apply(z, weight).sum(1) + z.square().sum(1)), [weight]


def through_intermediate_in_custom_function() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    weight = random(2, 3, seed=1, requires_grad=True)
    scaled = torch.tanh(weight)
    return (lambda z: 0.1 * Cube.apply(z, scaled).sum(1) + z.square().sum(1)), [weight]


def through_containers() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Tensors that enter an operation in a list, as a keyword, by index or by attribute."""
    a, b, c = (random(2, 3, seed=i, requires_grad=True) for i in (1, 2, 3))

    def loss(z: Tensor) -> Tensor:
        stacked = torch.stack([z, a, z * b])
        clamped = torch.addcmul(input=z, tensor1=z, tensor2=c)
        return stacked.prod(0).sin().sum(1) + clamped.square().sum(1) + (z @ a.T).square().sum(1)

    return loss, [a, b, c]


def through_view_and_frozen_parameter() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    weight = random(6, 3, seed=1, requires_grad=True)
    frozen = random(3, 3, seed=2)
    return (lambda z: (torch.tanh(z @ weight[1:4] @ frozen) - 1).square().sum(1)), [weight]


def through_shared_ancestor() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Weights that both the decoder and the encoder's output (seen by the decoder) depend on."""
    weight = random(3, 3, seed=1, requires_grad=True)
    memory = torch.tanh(random(2, 3, seed=2) @ weight)
    return (lambda z: (torch.tanh(z @ weight) - memory).square().sum(1)), [weight]


def through_tied_transpose() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A tied autoencoder: the transpose was taken outside. Its graph saves nothing."""
    weight = random(3, 3, seed=1, requires_grad=True)
    transposed = weight.T
    return (lambda z: (torch.tanh(z @ weight) @ transposed - 1).square().sum(1)), [weight]


def through_two_outputs_of_a_chain() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Two captured results, one computed from the other."""
    weight = random(3, 3, seed=1, requires_grad=True)
    lower = torch.tanh(random(2, 3, seed=2) @ weight)
    upper = lower.exp()
    return (lambda z: (z * lower).sin().sum(1) + (z * upper).square().sum(1)), [weight]


def through_vmap() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A loss for one task, mapped over latents and over targets that require a gradient."""
    weight = random(3, 3, seed=1, requires_grad=True)
    target = random(2, 3, seed=2, requires_grad=True)
    mapped = torch.func.vmap(lambda z, t: (torch.tanh(z @ weight) - t).square().sum())
    return (lambda z: mapped(z, target)), [weight, target]


def through_checkpoint() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Activation checkpointing inside the support loss."""
    weight = random(3, 3, seed=1, requires_grad=True)

    def block(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight)

    def loss(z: Tensor) -> Tensor:
        hidden = torch.utils.checkpoint.checkpoint(block, z, use_reentrant=False)
        return (hidden - 1).square().sum(1)

    return loss, [weight]


@pytest.mark.parametrize(
    "make",
    [
        through_module,
        through_intermediate_result,
        through_custom_function,
        through_intermediate_in_custom_function,
        through_containers,
        through_view_and_frozen_parameter,
        through_shared_ancestor,
        through_tied_transpose,
        through_two_outputs_of_a_chain,
        through_vmap,
        through_checkpoint,
    ],
)
def test_every_captured_tensor_receives_its_gradient(
    make: Callable[[], tuple[Callable[[Tensor], Tensor], list[Tensor]]],
) -> None:
    """However the support loss comes by it."""
    assert_like_unrolled(make, random(2, 3))


def test_a_captured_latent_receives_both_gradients() -> None:
    """As argument and as captured tensor: L(y) = (y - 3 z)^2 / 2 at y = z has slope 2 in z."""
    latent = random(2, 3, requires_grad=True)
    adapter = LatentAdapter(0.5, differentiation=FiniteDifference())
    refined = adapter(latent, lambda y: 0.5 * (y - 3.0 * latent).square().sum(1)).latent
    (gradient,) = torch.autograd.grad(refined.sum(), latent)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 - 0.5 + 0.5 * 3.0))


def test_the_graph_of_a_captured_result_is_left_for_others() -> None:
    """The encoder's output serves the support loss twice over, the outer loss, and the latent."""
    weight = random(3, 3, seed=1, requires_grad=True)
    gradients = []
    for policy in (Unrolled(), FiniteDifference()):
        memory = torch.tanh(random(2, 3, seed=2) @ weight)
        adapter = LatentAdapter(0.3, steps=3, differentiation=policy)
        refined = adapter(memory * 2, lambda z, m=memory: (z - m).pow(4).sum(1)).latent
        gradients += torch.autograd.grad((refined * memory).sum(), weight)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-9)


def test_a_parameter_changed_before_backward_is_noticed() -> None:
    """The passes of `backward()` would be at other weights than the forward pass."""
    weight = random(3, 3, seed=1, requires_grad=True)
    refined = LatentAdapter(0.3, differentiation=FiniteDifference())(
        random(2, 3), lambda z: (torch.tanh(z @ weight) - 1).square().sum(1)
    ).latent
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        refined.sum().backward()


def test_no_leaf_gradient_is_written_by_the_passes() -> None:
    """`autograd.grad` of the outer loss leaves `.grad` of parameters and latent empty."""
    weight, latent = random(3, 3, seed=1, requires_grad=True), random(2, 3, requires_grad=True)
    refined = LatentAdapter(0.3, steps=2, differentiation=FiniteDifference())(
        latent, lambda z: (torch.tanh(z @ weight) - 1).square().sum(1)
    ).latent
    torch.autograd.grad(refined.sum(), latent)
    assert weight.grad is None
    assert latent.grad is None


def test_what_the_loss_closes_over_is_freed_when_a_name_is_reused() -> None:
    """`z = adapter(z, loss of z)` must not tie the graph to itself, or every batch leaks."""
    weight = random(3, 3, seed=1, requires_grad=True)
    adapter = LatentAdapter(0.1, steps=2, differentiation=FiniteDifference())

    def train(target: Tensor) -> None:
        z = random(2, 3)
        z = adapter(z, lambda y: (y @ weight - target).square().sum(1) + 0 * z.detach().sum(1))
        z = z.latent
        z.sum().backward()

    target = random(2, 3, seed=2)
    alive = weakref.ref(target)
    train(target)
    del target
    gc.collect()
    assert alive() is None


# --- the same draws -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_dropout_uses_one_mask_in_all_passes_of_a_step(steps: int) -> None:
    """The masks of `Unrolled` with the same seed; a fresh mask would dwarf the difference."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    gradients = []
    for policy in (Unrolled(), FiniteDifference(), FiniteDifference()):
        torch.manual_seed(1)
        latent = random(2, 3, requires_grad=True)
        adapter = LatentAdapter(0.1, steps=steps, differentiation=policy)
        refined = adapter(latent, lambda z: (decoder(z) - 1).square().sum(1)).latent
        torch.manual_seed(99)  # the global state at the time of backward() is another one
        inputs = [latent, *decoder.parameters()]
        gradients.append(torch.autograd.grad(refined.sin().sum(), inputs))
        assert torch.equal(torch.rand(3), torch.manual_seed(99) and torch.rand(3))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(gradients[2], gradients[1], rtol=0, atol=0)


# --- settings and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("relative_step", [None, 0.1])
def test_half_precision_is_refused_with_the_remedy(
    dtype: torch.dtype, relative_step: float | None
) -> None:
    """And the remedy works."""
    latent = random(2, 3).to(dtype).requires_grad_()
    policy = FiniteDifference(relative_step)
    loss = lambda z: z.cos().sum(1)  # noqa: E731
    with pytest.raises(ValueError, match=r"float32 or float64.*got torch.*full_precision=True"):
        LatentAdapter(0.3, differentiation=policy)(latent, loss)
    adapter = LatentAdapter(0.3, differentiation=FiniteDifference(), full_precision=True)
    refined = adapter(latent, loss).latent
    assert refined.dtype == dtype
    refined.float().sum().backward()
    assert latent.grad is not None
    expected = 1 + 0.3 * latent.detach().float().cos()
    torch.testing.assert_close(latent.grad.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_half_precision_leaf_is_refused_wherever_it_stands(order: tuple[str, str]) -> None:
    """Not only in the first leaf."""
    leaves = {"a": random(2, 3).float(), "b": random(2, 3, seed=1).to(torch.bfloat16)}
    latent = [leaves[name] for name in order]
    with pytest.raises(ValueError, match="full_precision=True"):
        LatentAdapter(0.3, differentiation=FiniteDifference())(
            latent, lambda p: sum(z.double().cos().sum(1) for z in p)
        )


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_step_suits_the_least_precise_leaf(order: tuple[str, str]) -> None:
    """A float64 leaf beside a float32 one: rounding of the latter decides."""
    leaves = {
        "a": random(2, 30).requires_grad_(),
        "b": random(2, 30, seed=1).float().requires_grad_(),
    }
    latent = [leaves[name] for name in order]
    refined = LatentAdapter(1.0, differentiation=FiniteDifference())(
        latent, lambda p: sum(z.double().cos().sum(1) for z in p)
    ).latent
    sum(z.double().sum() for z in refined).backward()
    for leaf in latent:
        assert leaf.grad is not None
        second = leaf.grad.double() - 1
        expected = leaf.detach().double().cos()
        assert (second - expected).norm() < 3e-4 * expected.norm()


def test_autocast_without_full_precision_is_refused_or_accurate() -> None:
    """The noise of bfloat16 over a step for float32 would be a wrong gradient without a word."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    gradients = []
    for policy in (Unrolled(), FiniteDifference()):
        latent = random(4, 16).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                adapter = LatentAdapter(0.3, steps=2, differentiation=policy)
                refined = adapter(latent, lambda z: (decoder(z).float() - 1).square().sum(1)).latent
            except ValueError as error:
                assert "full_precision" in str(error)  # noqa: PT017
                return
            gradients += torch.autograd.grad(refined.square().sum(), decoder[0].weight)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize("step", [0.0, -1e-3, float("nan")])
def test_a_relative_step_must_be_positive(step: float) -> None:
    with pytest.raises(ValueError, match="expected a positive relative step, got"):
        FiniteDifference(step)


def test_an_unknown_stencil_is_refused() -> None:
    with pytest.raises(ValueError, match="expected stencil 'central' or 'forward', got 'backward'"):
        FiniteDifference(stencil="backward")  # type: ignore[arg-type]


def test_the_default_step_balances_truncation_and_rounding() -> None:
    """Machine precision to the power 1/3, or 1/2 for the one-sided stencil."""
    assert FiniteDifference().relative([torch.zeros(1, dtype=torch.float64)]) == pytest.approx(
        6.06e-6, rel=1e-2
    )
    assert FiniteDifference().relative([torch.zeros(1)]) == pytest.approx(4.92e-3, rel=1e-2)
    forward = FiniteDifference(stencil="forward")
    assert forward.relative([torch.zeros(1, dtype=torch.float64)]) == pytest.approx(
        1.49e-8, rel=1e-2
    )
    assert FiniteDifference(0.01).relative([torch.zeros(1)]) == 0.01


def test_it_is_closer_to_unrolled_than_any_cheaper_policy() -> None:
    """A sanity check of the comparison itself: first-order and truncated are far off."""
    loss, inputs = through_module()
    latent = random(2, 3)
    exact = gradients_of(Unrolled(), loss, latent, inputs)[0]
    distance = {
        policy: (gradients_of(policy, loss, latent, inputs)[0] - exact).norm() / exact.norm()
        for policy in (FiniteDifference(), Truncated(1), FirstOrder())
    }
    assert distance[FiniteDifference()] < 1e-8
    assert distance[Truncated(1)] > 1e-2
    assert distance[FirstOrder()] > 1e-2
