"""Terms without negatives: closed forms, derivatives, what they do not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalearn import Isotropy, Projector, TaskContrastiveLoss, vicreg
from metalearn.isotropy import epps_pulley
from metalearn.vicreg import covariance, variance

CPU = torch.Generator()


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=CPU.manual_seed(seed), dtype=torch.float64)


def test_vicreg_is_what_numpy_computes() -> None:
    first, second = rows(7, 4), 0.3 * rows(7, 4, seed=1)

    def parts(x: torch.Tensor) -> tuple[float, float]:
        matrix = np.cov(x.numpy(), rowvar=False)
        spread = np.maximum(0, 1 - np.sqrt(np.diag(matrix) + 1e-4)).mean()
        return spread, (matrix**2)[~np.eye(4, dtype=bool)].sum() / 4

    (v1, c1), (v2, c2) = parts(first), parts(second)
    assert variance(second).item() == pytest.approx(v2)
    assert covariance(first).item() == pytest.approx(c1)
    apart = ((first - second) ** 2).mean().item()
    expected = 25 * apart + 25 * (v1 + v2) / 2 + c1 + c2
    assert vicreg(first, second).item() == pytest.approx(expected)
    weights = {"invariance_weight": 1.0, "variance_weight": 2.0, "covariance_weight": 3.0}
    expected = apart + (v1 + v2) + 3 * (c1 + c2)
    assert vicreg(first, second, **weights).item() == pytest.approx(expected)
    assert variance(rows(50, 3), floor=0.1).item() == 0


def test_the_statistic_is_the_closed_form() -> None:
    """Of Baringhaus and Henze for a Gaussian weight: by pairs of samples, without an integral."""
    x = rows(9, 3) + 0.5
    pairs = (x.unsqueeze(0) - x.unsqueeze(1)).square()
    expected = (
        torch.exp(-pairs / 2).mean((0, 1))
        - math.sqrt(2) * torch.exp(-x.square() / 4).mean(0)
        + 1 / math.sqrt(3)
    )
    assert torch.allclose(epps_pulley(x), 9 * math.sqrt(2 * math.pi) * expected, rtol=1e-3)


def test_the_statistic_tells_normal_samples() -> None:
    normal, uniform = rows(2000, 40), torch.rand(2000, 40, generator=CPU, dtype=torch.float64)
    mean = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert epps_pulley(normal).mean().item() == pytest.approx(mean, rel=0.35)
    assert epps_pulley((uniform - 0.5) * math.sqrt(12)).min() > 3 * mean
    assert epps_pulley(2 * normal).min() > 30 * mean


def test_isotropy_is_the_sum_of_its_parts() -> None:
    term = Isotropy(4, 16, weight=0.3).double()
    assert torch.allclose(term.directions.norm(dim=0), torch.ones(16, dtype=torch.float64))
    first, second = rows(6, 4), rows(6, 4, seed=1)
    measured = [epps_pulley(x @ term.directions).mean() / 6 for x in (first, second)]
    expected = (first - second).square().mean() + 0.3 * sum(measured) / 2
    assert torch.allclose(term(first, second), expected)
    assert "width=4, directions=16, weight=0.3" in repr(term)


@pytest.mark.parametrize("term", [vicreg, Isotropy(3, 8).double()], ids=["vicreg", "isotropy"])
def test_derivatives(term: torch.nn.Module) -> None:
    first, second = rows(5, 3).requires_grad_(), rows(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(term, (first, second))
    assert torch.autograd.gradgradcheck(term, (first, second))
    half = term(first.half(), second.half())
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert term(first.float(), second.float()).dtype == torch.float32


@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
def test_what_they_do_not_depend_on(seed: int, shift: float) -> None:
    first, second = rows(8, 3, seed=seed), rows(8, 3, seed=seed + 1)
    order = torch.randperm(8, generator=CPU)
    for term in (vicreg, Isotropy(3, 8).double()):
        value = term(first, second)
        assert torch.allclose(term(second, first), value)
        assert torch.allclose(term(first[order], second[order]), value)
    assert torch.allclose(vicreg(first + shift, second + shift), vicreg(first, second))
    columns = [2, 0, 1]
    assert torch.allclose(vicreg(first[:, columns], second[:, columns]), vicreg(first, second))
    assert vicreg(first, second) >= 0


def test_as_the_term_of_a_contrast() -> None:
    torch.manual_seed(0)
    latent, refined = torch.randn(6, 3, 8), torch.randn(6, 3, 8)
    projector = Projector(8, 16, 4)
    loss = TaskContrastiveLoss(projector, term=vicreg)
    views = [projector(x.mean(1)) for x in (latent, refined)]
    assert torch.allclose(loss(latent, refined), vicreg(*views))
    assert torch.allclose(loss.compare(latent.mean(1), refined.mean(1)), vicreg(*views))
    kept = TaskContrastiveLoss(projector, term=Isotropy(4, 8))
    assert "term.directions" in kept.state_dict()
    assert "term.directions" not in TaskContrastiveLoss(projector).state_dict()
    with pytest.raises(ValueError, match=r"no temperature beside a term of its own, got 0.1"):
        TaskContrastiveLoss(projector, temperature=0.1, term=vicreg)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vicreg(torch.ones(3, 2), torch.ones(4, 2)), r"one shape \(B, D\), got \(3, 2\)"),
        (lambda: vicreg(torch.ones(1, 2), torch.ones(1, 2)), r"B >= 2, over which columns vary"),
        (lambda: covariance(torch.ones(3)), r"got \(3,\)"),
        (lambda: epps_pulley(torch.ones(0, 2)), r"samples \(B, M\), one or more, got \(0, 2\)"),
        (lambda: Isotropy(2)(torch.ones(3, 4), torch.ones(3, 4)), r"\(B, 2\), got \(3, 4\)"),
        (lambda: Isotropy(0), r"width and directions of 1 or more"),
        (lambda: Isotropy(2, weight=-1.0), r"weight of 0 or more, got width=2"),
    ],
)
def test_what_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
