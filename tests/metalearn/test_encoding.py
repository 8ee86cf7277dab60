"""Support encoders: invariances of `SetEncoder`, its mask, and the protocol."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalearn import SetEncoder, SupportEncoder


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(name="encoder", scope="module")
def make_encoder() -> SetEncoder:
    """From 3 features to a latent of width 4."""
    torch.manual_seed(0)
    return SetEncoder(3, 4, hidden=5).double()


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**16))
def test_the_order_of_the_elements_does_not_matter(
    encoder: SetEncoder, order: list[int], seed: int
) -> None:
    """With and without a mask that moves along."""
    support = random(2, 6, 3, seed=seed)
    present = random(2, 6, seed=seed + 1) > 0
    torch.testing.assert_close(encoder(support[:, order]), encoder(support))
    torch.testing.assert_close(
        encoder(support[:, order], present[:, order]), encoder(support, present)
    )


def test_a_set_is_encoded_by_the_mean_of_its_elements(encoder: SetEncoder) -> None:
    """rho(mean phi(x)) by hand; the latent depends on the elements, and not on neighbours."""
    support = random(2, 6, 3)
    latent = encoder(support)
    assert latent.shape == (2, 4)
    for b in range(2):
        mean = sum(encoder.element(support[b, s]) for s in range(6)) / 6
        torch.testing.assert_close(latent[b], encoder.readout(mean))
    assert (latent[0] - latent[1]).abs().max() > 1e-3


@settings(max_examples=25, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), seed=st.integers(0, 99))
def test_a_mask_equals_dropping_the_elements(
    encoder: SetEncoder, mask: list[bool], seed: int
) -> None:
    """Whatever stands in the empty slots."""
    support, present = random(1, 6, 3, seed=seed), torch.tensor([mask])
    torch.testing.assert_close(encoder(support, present), encoder(support[:, mask]))


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e300])
def test_junk_in_an_empty_slot_reaches_neither_value_nor_gradient(
    encoder: SetEncoder, junk: float
) -> None:
    """Not the latent, not the support's gradient, and not the gradient of any weight."""
    present = torch.tensor([[True, False, True], [True, True, False]])
    clean = random(2, 3, 3)
    filled = torch.where(present.unsqueeze(-1), clean, torch.full_like(clean, junk))
    results = []
    for support in (clean.clone(), filled.clone()):
        support.requires_grad_()
        latent = encoder(support, present)
        inputs = [support, *encoder.parameters()]
        results.append([latent, *torch.autograd.grad(latent.square().sum(), inputs)])
    for expected, received in zip(*results, strict=True):
        torch.testing.assert_close(received, expected)


@pytest.mark.parametrize("masked", [True, False])
def test_a_task_without_elements_gets_the_readout_of_zero(
    encoder: SetEncoder, masked: bool
) -> None:
    """An empty mean would be NaN, whether its slots are masked or there are none."""
    support = random(2, 3, 3) if masked else random(2, 0, 3)
    present = torch.zeros(2, 3, dtype=torch.bool) if masked else None
    expected = encoder.readout(torch.zeros(5, dtype=torch.float64)).expand(2, 4)
    torch.testing.assert_close(encoder(support, present), expected)


def test_hidden_width_defaults_to_the_width_of_the_latent() -> None:
    """Both perceptrons."""
    encoder = SetEncoder(3, 7)
    assert [m.out_features for m in encoder.modules() if isinstance(m, nn.Linear)] == [7] * 4


@pytest.mark.parametrize("shape", [(2, 3), (2, 6, 4), (2, 6, 3, 1)])
def test_a_support_of_another_shape_is_refused(encoder: SetEncoder, shape: tuple[int, ...]) -> None:
    """The message holds both shapes."""
    received = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"expected support .* \(B, S, 3\), got {received}"):
        encoder(torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("present", "received"),
    [
        (torch.ones(2, 6), r"got torch.float32 of shape \(2, 6\)"),
        (torch.ones(2, 5, dtype=torch.bool), r"got torch.bool of shape \(2, 5\)"),
        (torch.ones(2, 6, 1, dtype=torch.bool), r"got torch.bool of shape \(2, 6, 1\)"),
    ],
    ids=["not boolean", "too short", "one axis more"],
)
def test_another_mask_is_refused(encoder: SetEncoder, present: Tensor, received: str) -> None:
    """A 0/1 mask of floats would be read as something else by where()."""
    with pytest.raises(ValueError, match=r"expected a boolean mask of shape \(2, 6\), " + received):
        encoder(random(2, 6, 3), present)


def test_the_protocol_is_checked_at_run_time(encoder: SetEncoder) -> None:
    """Anything callable is a support encoder; a bare tensor or a name is not."""
    assert isinstance(encoder, SupportEncoder)
    assert isinstance(lambda support: support, SupportEncoder)
    assert not isinstance(torch.ones(2), SupportEncoder)
    assert not isinstance("encoder", SupportEncoder)
