"""`recomputed_attention`: plain attention and all its derivatives, without maps that are kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn import (
    Checkpointed,
    GradientPolicy,
    LatentAdapter,
    Unrolled,
    blockwise,
    plain_attention,
    recomputed_attention,
)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def derivatives(attention: Attention, inputs: list[Tensor], order: int) -> list[Tensor]:
    """The value, and gradients of sums of cubes of what comes before."""
    results = [attention(*inputs)]
    for _ in range(order):
        wide = [x if x.dtype == torch.float64 else x.float() for x in results]
        total = sum(((x + 1) ** 3).mean() for x in wide)
        assert isinstance(total, Tensor)
        results = list(torch.autograd.grad(total, inputs, create_graph=True))
    return results


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    block=st.integers(1, 40),
    order=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_every_derivative_is_that_of_plain_attention(
    leading: list[int], sizes: tuple[int, int, int, int], block: int, order: int, seed: int
) -> None:
    """In blocks of any size: of several examples, of one, of some queries, of one."""
    targets, sources, width, out = sizes
    inputs = [
        random(*leading, targets, width, seed=seed),
        random(*leading, sources, width, seed=seed + 1),
        random(*leading, sources, out, seed=seed + 2),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK", block)
        received = derivatives(recomputed_attention, inputs, order)
    expected = derivatives(plain_attention, inputs, order)
    scale = max(float(x.detach().abs().max()) for x in expected) + 1
    for ours, theirs in zip(received, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * scale)


def test_derivatives_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of one query."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    inputs = [random(2, 2, 3, 2), random(2, 2, 4, 2, seed=1), random(2, 2, 4, 3, seed=2)]
    assert torch.autograd.gradcheck(recomputed_attention, inputs)
    assert torch.autograd.gradgradcheck(recomputed_attention, inputs)


def test_leading_axes_broadcast() -> None:
    inputs = [random(4, 2, 3, 5), random(2, 6, 5, seed=1), random(1, 6, 5, seed=2)]
    for ours, theirs in zip(
        derivatives(recomputed_attention, inputs, 2),
        derivatives(plain_attention, inputs, 2),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_only_some_arguments_need_a_gradient() -> None:
    """The others are constants, in the second derivative and the third too."""
    query, key, value = random(2, 3, 4), random(2, 5, 4).detach(), random(2, 5, 4).detach()
    for order in (1, 2, 3):
        (ours,) = derivatives(lambda q: recomputed_attention(q, key, value), [query], order)
        (theirs,) = derivatives(lambda q: plain_attention(q, key, value), [query], order)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_maps_in_float32(dtype: torch.dtype) -> None:
    wide = [2 * random(2, 2, 9, 16, seed=seed).detach() for seed in range(3)]
    inputs = [x.to(dtype).requires_grad_() for x in wide]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for order in (0, 1, 2):
        received = derivatives(recomputed_attention, inputs, order)
        expected = derivatives(plain_attention, exact, order)
        for ours, theirs in zip(received, expected, strict=True):
            assert ours.dtype == dtype
            error = (ours.double() - theirs).norm() / theirs.norm()
            assert error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_autocast_casts_as_for_plain_attention() -> None:
    inputs = [random(2, 2, 9, 16, seed=seed).detach().float().requires_grad_() for seed in range(3)]
    results = []
    for attention in (recomputed_attention, plain_attention):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attention(*inputs)
            (inner,) = torch.autograd.grad(
                mixed.float().square().sum(), inputs[0], create_graph=True
            )
        assert mixed.dtype == torch.bfloat16
        results.append(torch.autograd.grad(inner.square().sum(), inputs))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_no_map_is_kept() -> None:
    """What two graphs save is as long as the arguments, where plain attention saves maps."""

    def largest(attention: Attention) -> int:
        inputs, sizes = [random(1, 2, 32, 4, seed=seed) for seed in range(3)], [0]
        pack = lambda x: sizes.append(x.numel()) or x  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            mixed = attention(*inputs)
            torch.autograd.grad(mixed.sin().sum(), inputs, create_graph=True)
        return max(sizes)

    assert largest(recomputed_attention) == 2 * 32 * 4
    assert largest(plain_attention) == 2 * 32 * 32


def test_the_graph_is_freed_without_the_garbage_collector() -> None:
    inputs = [random(1, 2, 3, 4, seed=seed) for seed in range(3)]
    mixed = recomputed_attention(*inputs)
    (inner,) = torch.autograd.grad(mixed.sin().sum(), inputs[0], create_graph=True)
    node = weakref.ref(inner.grad_fn)
    del mixed, inner
    assert node() is None


def test_transforms_see_plain_attention() -> None:
    inputs = [random(3, 2, 4, 5, seed=seed).detach() for seed in range(3)]

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return recomputed_attention(q, k, v).sin().sum()

    per_example = torch.func.vmap(torch.func.grad(loss))(*inputs)
    query = inputs[0].requires_grad_()
    torch.testing.assert_close(per_example, torch.autograd.grad(loss(query, *inputs[1:]), query)[0])


@pytest.mark.parametrize(
    "policy", [Unrolled(), Unrolled(recompute=True), Checkpointed(), Checkpointed(recompute=True)]
)
def test_an_adapter_differentiates_it(policy: GradientPolicy) -> None:
    """Of weights and of what was computed before; with second and with third derivatives."""
    latent, weight = random(2, 2, 4, 5), random(5, 5, seed=1)

    def gradients(attention: Attention, policy: GradientPolicy) -> list[Tensor]:
        memory = latent.detach() @ weight.sin()  # a result from outside of the loss
        refined = LatentAdapter(0.3, steps=2, differentiation=policy)(
            latent, lambda z: (attention(z, z @ weight, memory) ** 2).flatten(1).sum(1)
        ).latent
        first = torch.autograd.grad(refined.cos().sum(), [latent, weight], create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), [latent, weight])
        return [*first, *second]

    expected = gradients(plain_attention, Unrolled())
    for ours, theirs in zip(gradients(recomputed_attention, policy), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
