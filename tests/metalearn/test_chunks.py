"""Refinement in chunks of tasks: the numbers of the whole batch, the memory of one chunk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalearn import (
    Checkpointed,
    FirstOrder,
    GradientPolicy,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    NonFiniteLossError,
    SecondDerivativeError,
    Unrolled,
)


def decoder(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def outer_gradient(
    policy: GradientPolicy, tasks: int, chunk_size: int | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradient in the latent, the step size and the decoder; losses; step norms."""
    network, step_size = decoder(), LearnedStepSize(0.7).double()
    adapter = LatentAdapter(
        step_size, steps=2, update=Momentum(0.5), differentiation=policy, chunk_size=chunk_size
    )
    draw = torch.Generator().manual_seed(1)
    latent = torch.randn(tasks, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randn(tasks, 2, generator=draw, dtype=torch.float64)

    def loss(z: Tensor, rows: slice = slice(None)) -> Tensor:
        error: Tensor = network(z) - target[rows]
        return error.square().sum(1)

    found = adapter(latent, loss, final_loss=True, trace=True)
    assert isinstance(found.latent, Tensor)
    assert found.trace is not None
    wanted = [latent, *step_size.parameters(), *network.parameters()]
    gradient = torch.autograd.grad((found.latent.sin().sum(1) ** 2).sum(), wanted)
    return list(gradient), found.losses, found.trace.step_norms


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7), st.integers(1, 9), st.sampled_from([Unrolled(), Checkpointed()]))
def test_chunks_give_the_numbers_of_the_batch(
    tasks: int, chunk_size: int, policy: GradientPolicy
) -> None:
    whole = outer_gradient(policy, tasks, None)
    parts = outer_gradient(policy, tasks, chunk_size)
    for a, b in zip(whole[0], parts[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
    assert torch.allclose(whole[1], parts[1], rtol=1e-12)
    assert torch.allclose(whole[2], parts[2], rtol=1e-12)


def test_a_latent_of_several_leaves_keeps_its_structure() -> None:
    latent = {"a": torch.ones(5, 2), "b": [torch.ones(5, 1, 3)]}
    sizes = []

    def loss(z: dict[str, Tensor], tasks: slice) -> Tensor:
        sizes.append((len(z["a"]), tasks))
        return z["a"].square().sum(1) + z["b"][0].square().sum((1, 2))

    found = LatentAdapter(0.25, chunk_size=2)(latent, loss)  # type: ignore[arg-type]
    assert sizes == [(2, slice(0, 2)), (2, slice(2, 4)), (1, slice(4, 5))]
    assert found.latent["a"].tolist() == [[0.5, 0.5]] * 5  # type: ignore[call-overload]
    assert found.latent["b"][0].shape == (5, 1, 3)  # type: ignore[call-overload]
    assert found.losses.tolist() == [[5.0] * 5]


def test_no_tasks_stay_none() -> None:
    found = LatentAdapter(0.5, chunk_size=2)(torch.zeros(0, 3), lambda z, tasks: z.sum(1))
    assert isinstance(found.latent, Tensor)
    assert found.latent.shape == (0, 3)
    assert found.losses.shape == (1, 0)


def test_the_error_names_the_task_by_its_place_in_the_batch() -> None:
    scale = torch.tensor([1.0, 1.0, 1.0, float("nan"), 1.0])
    adapter = LatentAdapter(0.5, chunk_size=2)
    with pytest.raises(NonFiniteLossError, match=r"1 of 2 tasks \(index 3\)"):
        adapter(torch.ones(5, 1), lambda z, tasks: z.sum(1) * scale[tasks])


def test_a_missing_second_derivative_is_found_in_chunks_too() -> None:
    query = torch.randn(1, 2, 3, 4)

    def fused(z: Tensor, tasks: slice) -> Tensor:
        heads = z.view(-1, 1, 3, 4)
        key = query[:, :1].expand(len(z), 1, 3, 4)
        mixed = nn.functional.scaled_dot_product_attention(heads, key, heads)
        return mixed.square().sum((1, 2, 3))

    with pytest.raises(SecondDerivativeError):
        LatentAdapter(0.5, chunk_size=1)(torch.randn(2, 12, requires_grad=True), fused)


def test_what_the_loss_closes_over_may_move_on() -> None:
    """A recomputing policy sees the targets of its own call."""
    gradients = []
    for reuse in (False, True):
        latent = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
        target = torch.full((4, 1), 2.0, dtype=torch.float64)

        def loss(z: Tensor, tasks: slice) -> Tensor:
            return (z - target[tasks]).pow(4).sum(1)  # noqa: B023 - this is the point

        adapter = LatentAdapter(0.01, differentiation=Checkpointed(), chunk_size=3)
        found = adapter(latent, loss).latent
        if reuse:
            target = torch.zeros(4, 1, dtype=torch.float64)
        assert isinstance(found, Tensor)
        gradients.append(torch.autograd.grad(found.sum(), latent)[0])
    assert torch.equal(*gradients)
    assert torch.allclose(gradients[0], torch.tensor(1 - 0.01 * 12.0, dtype=torch.float64))


def test_chunks_can_be_traced_and_transformed() -> None:
    """In one graph, and under ``torch.func``; the numbers are those of eager mode."""
    network, adapter = decoder(), LatentAdapter(0.3, steps=2, chunk_size=2)
    latent, target = torch.randn(5, 3).double().requires_grad_(), torch.randn(5, 2).double()

    def outer(z: Tensor) -> Tensor:
        def loss(point: Tensor, tasks: slice) -> Tensor:
            error: Tensor = network(point) - target[tasks]
            return error.square().sum(1)

        found = adapter(z, loss).latent
        assert isinstance(found, Tensor)
        return found.sin().sum()

    (expected,) = torch.autograd.grad(outer(latent), latent)
    traced = torch.compile(outer, fullgraph=True, backend="eager")
    (found,) = torch.autograd.grad(traced(latent), latent)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    transformed = torch.func.grad(outer)(latent.detach())
    assert torch.allclose(transformed, expected, rtol=1e-12, atol=1e-12)


def test_fewer_than_one_task_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size=0"):
        LatentAdapter(0.5, chunk_size=0)
    assert LatentAdapter(0.5, differentiation=FirstOrder(), chunk_size=3).chunk_size == 3
