"""The contrast under several ranks says that it is not that of the joint batch; rows of zeros.

The reports: Lightning-Universe/lightning-bolts#179, negatives of one's own rank only, in silence;
and pytorch/pytorch#184575, `F.normalize` at zero, here gradients of 4e11.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import Projector, TaskContrastiveLoss, gather_rows
from metalearn.contrast import directions, nt_xent

TASKS = 3


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- ranks ----------------------------------------------------------------------------------------


def views() -> tuple[Tensor, Tensor]:
    return random(2 * TASKS, 1, 4), random(2 * TASKS, 1, 4, seed=1)


def gradient(rows: slice, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Of the loss of some rows, in a linear encoder; the projector's beside it."""
    torch.manual_seed(0)
    encoder = nn.Linear(4, 4).double()
    projector = Projector(4, hidden=4, out=4).double() if gather else nn.Identity()
    first, second = views()
    contrast = TaskContrastiveLoss(projector, gather=gather)
    contrast(encoder(first[rows]), second[rows]).backward()
    found = [p.grad for p in (*encoder.parameters(), *projector.parameters()) if p.grad is not None]
    return torch.cat([one.flatten() for one in found]) if gather else found[0]


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    rows = slice(rank * TASKS, (rank + 1) * TASKS)
    result: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result["gradient"] = gradient(rows)
        gradient(rows)
        result["eager"] = [str(one.message) for one in caught]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        compiled = torch.compile(nt_xent, fullgraph=True, backend="eager")
        compiled(random(3, 4), random(3, 4, seed=1), 0.5)
        result["compiled"] = [str(m.message) for m in caught if "one process" in str(m.message)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", message="expected one process")
        gradient(rows)
        result["silenced"] = len(caught)
    uneven = slice(0, 1) if rank == 0 else slice(1, 2 * TASKS)  # one row has no negatives alone
    result["joint"] = [
        gradient(rows, gather_rows),
        gradient(uneven, gather_rows),
        gradient(uneven, lambda one: gather_rows(one, (1, 2 * TASKS - 1))),
    ]
    try:
        gather_rows(random(2, 3), (1, 1))
    except ValueError as fault:
        result["wrong"] = str(fault)
    torch.save(result, f"{folder}/rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without torch.distributed and its gloo backend",
)
def test_two_ranks_contrast_their_own_rows_and_are_told_or_gather_them(
    tmp_path: Path,
) -> None:
    """Once, in eager and compiled code; and rightly so: their mean is not the joint gradient."""
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for told in ranks:
        assert len(told["eager"]) == len(told["compiled"]) == 1
        assert told["eager"][0].startswith("expected one process, got 2: ")
        assert "gather=metalearn.gather_rows" in told["eager"][0]
        assert "one process for these" in told["eager"][0]
        assert told["silenced"] == 0
    mean = (ranks[0]["gradient"] + ranks[1]["gradient"]) / 2
    assert (mean - gradient(slice(None))).norm() > 0.05 * mean.norm()
    # Gathered, averages are those of one process, batch statistics included.
    expected = gradient(slice(None), gather_rows)
    assert expected.abs().max() > 1e-3
    for first, second in zip(ranks[0]["joint"], ranks[1]["joint"], strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-10, atol=1e-12)
    assert "each of 2 ranks, 2 of rank 0, got (1, 1)" in ranks[0]["wrong"]


def test_one_process_is_told_nothing() -> None:
    """Warnings are errors here."""
    gradient(slice(None))


# --- rows without a direction ---------------------------------------------------------------------


def reference(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """In float64, by torch's own cosine similarity."""
    rows = torch.cat([first, second]).double()
    similar = torch.cosine_similarity(rows.unsqueeze(1), rows.unsqueeze(0), dim=2, eps=1e-150)
    similar = similar / temperature
    similar = similar.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    partner = torch.arange(len(rows)).roll(len(first))
    return -similar.log_softmax(1)[torch.arange(len(rows)), partner].mean()


def both(
    first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, list[Tensor]]]:
    """Value and gradients: ours in a dtype, and the reference's."""
    results = []
    for loss, kind in ((nt_xent, dtype), (reference, torch.float64)):
        given = [view.to(kind).requires_grad_() for view in (first, second)]
        value = loss(given[0], given[1], 0.3)
        gradients = torch.autograd.grad(value, given)
        results.append((value.detach().double(), [g.double() for g in gradients]))
    return results


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e30])
def test_normal_rows_have_the_values_and_gradients_of_cosines(scale: float) -> None:
    """At every scale of float32; squares of the outer ones leave it."""
    first, second = random(5, 4), random(5, 4, seed=1)
    (value, _), (exact, _) = both(first * scale, second * scale)
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    (_, gradients), (_, expected) = both(first * scale, second * scale)
    for received, one in zip(gradients, expected, strict=True):
        torch.testing.assert_close(received * scale, one * scale, rtol=1e-4, atol=1e-6)


def test_rows_of_different_lengths_are_normal() -> None:
    """Within five orders of magnitude in float32."""
    lengths = 10 ** torch.linspace(-5, 0, 5, dtype=torch.float64).unsqueeze(1)
    (value, gradients), (exact, expected) = both(random(5, 4) * lengths, random(5, 4, seed=1))
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[0] * lengths, expected[0] * lengths, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.0, 1e-25])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_row_of_zeros_has_a_gradient_like_the_others(
    scale: float, noise: float, dtype: torch.dtype
) -> None:
    """Similar to nothing; its gradient is bounded by the others' scale, and points away from 0."""
    first, second = (random(4, 6) * scale).to(dtype), (random(4, 6, seed=1) * scale).to(dtype)
    first[1] = noise
    given = [first.requires_grad_(), second.requires_grad_()]
    value = nt_xent(first, second, 0.3)
    gradients = torch.autograd.grad(value, given)
    rows = torch.cat([view.detach().double() for view in given])
    assert directions(rows)[1].abs().max() < 1e-20
    similar = (directions(rows) @ directions(rows).T / 0.3).fill_diagonal_(-torch.inf)
    expected = -similar.log_softmax(1)[torch.arange(8), torch.arange(8).roll(4)].mean()
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=0)
    for one in gradients:
        assert one.isfinite().all()
        assert (one * scale).abs().max() < 10
    assert gradients[0][1].abs().max() > 0


def test_rows_that_are_all_zero_have_the_loss_of_a_guess_and_finite_gradients() -> None:
    zeros = torch.zeros(3, 4, requires_grad=True)
    value = nt_xent(zeros, torch.zeros(3, 4), 0.5)
    assert value.item() == pytest.approx(torch.tensor(5.0).log().item())
    (gradient_,) = torch.autograd.grad(value, zeros)
    assert gradient_.abs().max() < 10


def test_second_derivatives_are_finite_at_zero_and_right_elsewhere() -> None:
    """A contrast inside of a hypergradient is differentiated twice."""
    first, second = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b: nt_xent(a, b, 0.5), (first, second))
    zeros = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    (once,) = torch.autograd.grad(nt_xent(zeros, second, 0.5), zeros, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), second)
    assert twice.isfinite().all()
