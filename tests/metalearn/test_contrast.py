"""The task-contrastive loss: reference, invariances, extreme inputs, gradients, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalearn import MeanPool, Projector, TaskContrastiveLoss
from metalearn.contrast import nt_xent


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


def reference_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Eq. 3-4 of the paper, one scalar at a time."""
    rows = [*first, *second]
    tasks = len(first)

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    total = 0.0
    for i, row in enumerate(rows):
        partner = i + tasks if i < tasks else i - tasks
        others = [
            math.exp(similarity(row, rows[k]) / temperature) for k in range(len(rows)) if k != i
        ]
        positive = math.exp(similarity(row, rows[partner]) / temperature)
        total -= math.log(positive / sum(others))
    return total / len(rows)


@settings(max_examples=25, deadline=None)
@given(
    tasks=st.integers(2, 6),
    width=st.integers(1, 5),
    temperature=st.floats(0.1, 5.0),
    seed=st.integers(0, 2**16),
)
def test_equals_a_double_loop(tasks: int, width: int, temperature: float, seed: int) -> None:
    """An independent implementation in numpy."""
    first, second = random(tasks, width, seed=seed), random(tasks, width, seed=seed + 1)
    expected = reference_nt_xent(first.numpy(), second.numpy(), temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 2**16))
def test_neither_the_order_of_tasks_nor_of_views_matters(order: list[int], seed: int) -> None:
    """As long as both views are permuted alike; permuting one breaks the pairs."""
    first, second = random(5, 4, seed=seed), random(5, 4, seed=seed + 1)
    value = nt_xent(first, second, 0.5)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.5), value)
    torch.testing.assert_close(nt_xent(second, first, 0.5), value)
    assert not torch.isclose(nt_xent(first, second.roll(1, 0), 0.5), value, rtol=1e-6)


@pytest.mark.parametrize("tasks", [2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equal_orthonormal_views_have_the_closed_form(tasks: int, temperature: float) -> None:
    """One positive of similarity 1 and 2B - 2 negatives of 0: log(e^(1/tau) + 2B - 2) - 1/tau."""
    rows = torch.linalg.qr(random(6, 6)).Q[:tasks]
    expected = math.log(math.exp(1 / temperature) + 2 * tasks - 2) - 1 / temperature
    assert nt_xent(rows, rows, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_indistinguishable_rows_have_the_loss_of_a_guess() -> None:
    """All similarities equal: log(2B - 1), the cross-entropy of a uniform choice."""
    rows = torch.ones(4, 3, dtype=torch.float64)
    assert nt_xent(rows, rows, 0.5).item() == pytest.approx(math.log(7), rel=1e-12)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("temperature", [1e-4, 0.5, 1e4])
def test_extreme_norms_and_temperatures_stay_finite(norm: float, temperature: float) -> None:
    """In float32, and the norm does not change the value: only angles count."""
    first, second = random(4, 6).float(), random(4, 6, seed=1).float()
    scaled = [(view * norm).requires_grad_() for view in (first, second)]
    value = nt_xent(scaled[0], scaled[1], temperature)
    torch.testing.assert_close(value, nt_xent(first, second, temperature), rtol=1e-4, atol=1e-5)
    value.backward()
    assert all(view.grad is not None and view.grad.isfinite().all() for view in scaled)


def test_a_row_of_zeros_stays_finite() -> None:
    """An encoder that starts at the origin has a latent without direction."""
    first, second = torch.zeros(3, 4, requires_grad=True), random(3, 4).float()
    value = nt_xent(first, second, 0.5)
    value.backward()
    assert value.isfinite()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_gradients_flow_into_both_views() -> None:
    """Against finite differences, and neither is a stop-gradient."""
    views = random(3, 4, requires_grad=True), random(3, 4, seed=1, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), views)
    gradients = torch.autograd.grad(nt_xent(*views, 0.5), views)
    assert all((gradient.abs().sum(dim=1) > 1e-3).all() for gradient in gradients)


def test_the_module_pools_projects_and_compares() -> None:
    """Value by hand: mean over tokens, a linear map, then the double loop; gradients to both."""
    torch.manual_seed(0)
    projector = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    latent, refined = (
        random(5, 6, 4, requires_grad=True),
        random(5, 6, 4, seed=1, requires_grad=True),
    )
    value = TaskContrastiveLoss(projector, temperature=0.2)(latent, refined)
    weight = projector.weight.detach().numpy()
    hands = [view.detach().numpy().mean(axis=1) @ weight.T for view in (latent, refined)]
    assert value.item() == pytest.approx(reference_nt_xent(*hands, 0.2), rel=1e-10)
    value.backward()
    for tensor in (latent, refined, projector.weight):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 1e-6


def test_batch_statistics_are_those_of_one_view() -> None:
    """The projector sees each view on its own, once, the amortised view first."""
    torch.manual_seed(0)
    projector = Projector(4, hidden=8, out=3).double()
    seen: list[Tensor] = []
    projector.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    latent, refined = random(5, 6, 4), 10 + 3 * random(5, 6, 4, seed=1)
    value = TaskContrastiveLoss(projector)(latent, refined)
    assert [tuple(view.shape) for view in seen] == [(5, 4), (5, 4)]
    torch.testing.assert_close(seen[0], latent.mean(1))
    torch.testing.assert_close(seen[1], refined.mean(1))

    linear, norm, _, out = projector
    hands, running = [], torch.zeros(8, dtype=torch.float64)
    for view in seen:
        hidden = view @ linear.weight.T
        running = 0.9 * running + 0.1 * hidden.mean(0)
        spread = (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        hands.append(((hidden - hidden.mean(0)) / spread).relu() @ out.weight.T)
    arrays = [hand.detach().numpy() for hand in hands]
    assert value.item() == pytest.approx(reference_nt_xent(*arrays, 0.5), rel=1e-10)
    torch.testing.assert_close(norm.running_mean, running.detach())


def test_bfloat16_autocast_compares_in_float32() -> None:
    """Similarities in bfloat16 have 3 digits: too few for a temperature of 0.05."""
    first, second = random(8, 16).float(), random(8, 16, seed=1).float()
    exact = nt_xent(first, second, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(first, second, 0.05), exact)
        value = TaskContrastiveLoss(Projector(16))(first.unsqueeze(1), second.unsqueeze(1))
    assert value.dtype == torch.float32
    low = nt_xent(first.bfloat16(), second.bfloat16(), 0.05)
    assert low.dtype == torch.float32
    torch.testing.assert_close(
        low, nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.05)
    )


def test_float64_is_not_reduced() -> None:
    """Gradient checks of a whole model need it."""
    assert nt_xent(random(3, 4), random(3, 4, seed=1), 0.5).dtype == torch.float64


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_mean_pool_leaves_out_the_first_tokens(skip: int) -> None:
    """The class token takes no part."""
    latent = random(2, 5, 3)
    expected = sum(latent[:, t] for t in range(skip, 5)) / (5 - skip)
    torch.testing.assert_close(MeanPool(skip)(latent), expected)


def test_another_pool_replaces_the_mean() -> None:
    """Latents without tokens need none."""
    first, second = random(3, 4), random(3, 4, seed=1)
    loss = TaskContrastiveLoss(nn.Identity(), pool=nn.Identity())
    torch.testing.assert_close(loss(first, second), nt_xent(first, second, 0.5))


@pytest.mark.parametrize(
    ("skip", "shape"), [(0, (2, 3)), (2, (2, 2, 3)), (0, (2, 0, 3)), (0, (2, 3, 4, 5))]
)
def test_mean_pool_refuses_other_shapes(skip: int, shape: tuple[int, ...]) -> None:
    """An empty mean would be NaN."""
    received = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"more than {skip} tokens, got {received}"):
        MeanPool(skip)(torch.ones(shape))


def test_one_task_alone_is_refused() -> None:
    """There are no negatives, so the loss would be zero for any encoder."""
    loss = TaskContrastiveLoss(nn.Identity())
    with pytest.raises(ValueError, match=r"B >= 2 tasks, got \(1, 4\).*larger batch"):
        loss(random(1, 3, 4), random(1, 3, 4))


def test_views_of_different_batches_are_refused() -> None:
    """Pairs are rows of the same index."""
    loss = TaskContrastiveLoss(nn.Identity())
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(2, 4\)"):
        loss(random(3, 5, 4), random(2, 5, 4))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    """Zero divides, a negative one repels the positives."""
    with pytest.raises(ValueError, match=f"expected a positive temperature, got {temperature}"):
        TaskContrastiveLoss(nn.Identity(), temperature=temperature)


@pytest.mark.parametrize("skip", [-1, -3, 1.5, None])
def test_mean_pool_refuses_to_count_from_the_end(skip: Any) -> None:
    """-1 took the last token alone, without a word."""
    with pytest.raises(ValueError, match=rf"0 or more, got skip={skip}"):
        MeanPool(skip)
