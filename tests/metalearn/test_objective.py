"""`MetaObjective`: its value is the composition of its parts, and gradients reach all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    FirstOrder,
    LatentAdapter,
    LearnedStepSize,
    MetaLoss,
    MetaObjective,
    Projector,
    SupportLossShapeError,
    TaskContrastiveLoss,
    Unrolled,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Parts:
    """Encoder, decoder, contrast and data of one small problem: 4 tasks of 3 tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Linear(5, 6).double()
        self.decoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        self.contrast = TaskContrastiveLoss(Projector(6, hidden=7, out=4).double())
        self.size = LearnedStepSize(0.3, channels=6).double()
        self.support, self.query = random(4, 3, 5), random(4, 3, 5, seed=1)

    def support_loss(self, latent: Tensor) -> Tensor:
        return (self.decoder(latent) - self.support).square().mean(dim=(1, 2))

    def query_loss(self, latent: Tensor) -> Tensor:
        return (self.decoder(latent) - self.query).square().mean(dim=(1, 2))

    def evaluate(
        self, contrast: TaskContrastiveLoss | None, weight: float = 1.0, *, exact: bool = True
    ) -> MetaLoss:
        adapter = LatentAdapter(
            self.size, steps=2, differentiation=Unrolled() if exact else FirstOrder()
        )
        objective = MetaObjective(self.encoder, adapter, contrast, contrast_weight=weight)
        return objective(self.support, support_loss=self.support_loss, query_loss=self.query_loss)

    def parameters(self) -> list[nn.Parameter]:
        modules = (self.encoder, self.decoder, self.contrast, self.size)
        return [parameter for module in modules for parameter in module.parameters()]


@pytest.fixture(name="parts")
def make_parts() -> Parts:
    """Fresh for every test: BatchNorm counts its calls."""
    return Parts()


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_loss_is_the_composition_written_by_hand(parts: Parts, weight: float) -> None:
    """Encode, two steps by autograd.grad, query, contrast; value and every gradient."""
    result = parts.evaluate(parts.contrast, weight)

    latent = refined = parts.encoder(parts.support)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(
            parts.support_loss(refined).sum(), refined, create_graph=True
        )
        refined = refined - parts.size.log_value[0][0].exp() * gradient
    query = parts.query_loss(refined).sum() / 4
    contrast = parts.contrast(latent, refined)
    torch.testing.assert_close(result.latent, latent)
    torch.testing.assert_close(result.adaptation.latent, refined)
    torch.testing.assert_close(result.query, query)
    torch.testing.assert_close(result.contrast, contrast)
    torch.testing.assert_close(result.loss, query + weight * contrast)

    expected = torch.autograd.grad(query + weight * contrast, parts.parameters())
    received = torch.autograd.grad(result.loss, parts.parameters())
    for ours, hand in zip(received, expected, strict=True):
        torch.testing.assert_close(ours, hand)


def test_without_a_contrast_the_loss_is_the_query_loss(parts: Parts) -> None:
    """And the result says that there was none."""
    result = parts.evaluate(None)
    assert result.contrast is None
    assert torch.equal(result.loss, result.query)
    assert result.adaptation.losses.shape == (2, 4)


def test_a_weight_of_zero_equals_no_contrast(parts: Parts) -> None:
    """In value and in the gradients of what both have."""
    result, without = parts.evaluate(parts.contrast, 0.0), parts.evaluate(None)
    assert result.contrast is not None
    assert torch.equal(result.loss, without.loss)
    shared = [*parts.encoder.parameters(), *parts.decoder.parameters(), *parts.size.parameters()]
    received = torch.autograd.grad(result.loss, shared)
    expected = torch.autograd.grad(without.loss, shared)
    for ours, hand in zip(received, expected, strict=True):
        torch.testing.assert_close(ours, hand)


@pytest.mark.parametrize("part", ["encoder", "decoder", "contrast", "size"])
def test_gradients_reach_every_part(parts: Parts, part: str) -> None:
    """Along a random direction they match the central difference of the loss."""
    parameters = list(getattr(parts, part).parameters())
    parts.evaluate(parts.contrast, 0.7).loss.backward()
    directions = [random(*p.shape, seed=20 + i) for i, p in enumerate(parameters)]
    slope = torch.zeros((), dtype=torch.float64)
    for parameter, direction in zip(parameters, directions, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-8
        slope += (parameter.grad * direction).sum()

    def shifted(by: float) -> float:
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data += by * direction
        return parts.evaluate(parts.contrast, 0.7).loss.item()

    step = 1e-6
    numeric = (shifted(step) - shifted(-2 * step)) / (2 * step)
    assert slope.item() == pytest.approx(numeric, rel=1e-5)


def test_first_order_gives_the_same_loss_and_another_gradient(parts: Parts) -> None:
    """The ablation of the second derivative."""
    exact, first = parts.evaluate(None), parts.evaluate(None, exact=False)
    torch.testing.assert_close(exact.loss, first.loss)
    exact_gradient = torch.autograd.grad(exact.loss, parts.encoder.weight)[0]
    first_gradient = torch.autograd.grad(first.loss, parts.encoder.weight)[0]
    assert (exact_gradient - first_gradient).abs().max() > 1e-3 * exact_gradient.abs().max()


def test_a_zero_encoder_and_unit_step_is_a_gradient_origin_network() -> None:
    """For |W z - x|^2 / 2 the latent is the negative gradient at the origin, W' x."""
    weight, data = random(5, 3), random(4, 5, seed=1)

    def loss(z: Tensor) -> Tensor:
        return 0.5 * (z @ weight.T - data).square().sum(1)

    objective = MetaObjective(lambda x: x.new_zeros(len(x), 3), LatentAdapter(1.0))
    result = objective(data, support_loss=loss, query_loss=loss)
    torch.testing.assert_close(result.adaptation.latent, data @ weight)
    torch.testing.assert_close(result.loss, loss(data @ weight).mean())


def test_a_query_loss_may_be_a_mean_already(parts: Parts) -> None:
    """Masked losses are often averaged over all their elements at once."""
    objective = MetaObjective(parts.encoder, LatentAdapter(0.3))
    per_task = objective(
        parts.support, support_loss=parts.support_loss, query_loss=parts.query_loss
    )
    mean = objective(
        parts.support,
        support_loss=parts.support_loss,
        query_loss=lambda z: parts.query_loss(z).mean(),
    )
    torch.testing.assert_close(mean.loss, per_task.loss)


def test_a_query_loss_of_another_shape_is_refused(parts: Parts) -> None:
    """The message holds the shape."""
    objective = MetaObjective(parts.encoder, LatentAdapter(0.3))
    with pytest.raises(SupportLossShapeError, match=r"expected a query loss .*, got \(4, 3, 6\)"):
        objective(parts.support, support_loss=parts.support_loss, query_loss=lambda z: z.square())


def test_a_negative_weight_is_refused(parts: Parts) -> None:
    """It would push a task's own latents apart."""
    with pytest.raises(ValueError, match=r"expected contrast_weight >= 0, got -0\.1"):
        MetaObjective(parts.encoder, LatentAdapter(0.3), contrast_weight=-0.1)
