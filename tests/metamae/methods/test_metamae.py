"""MAE and MetaMAE: the published objective's properties, and the traps of its gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    FiniteDifference,
    FirstOrder,
    SecondDerivativeError,
    TaskContrastiveLoss,
    Unrolled,
    plain_attention,
)
from metalearn.contrast import nt_xent
from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.config.sections import (
    AdaptationConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    MaskingConfig,
)
from metamae.errors import InputError
from metamae.inputs import Batch, Image, Inputs, Signal, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.methods.method import Method
from metamae.model.masking import Split
from metamae.randomness import generator

SIGNAL = Signal(name="signal", channels=2, length=16, token_length=2)
IMAGE = Image(name="image", channels=1, height=4, width=6, patch=(2, 2))
ROW = Tabular(name="row", columns=8)
WORDS = Tokens(name="words", length=7, vocabulary=5)
KINDS: dict[str, Inputs] = {
    "signal": (SIGNAL,),
    "image": (IMAGE,),
    "row": (ROW,),
    "words": (WORDS,),
    "image and words": (IMAGE, WORDS),
}


def config_of(
    method: str = "metamae", *, weight: float = 0.5, nearby_ratio: float = 0.3, **adaptation: Any
) -> Config:
    """A tiny network; keywords reach the adaptation."""
    return Config(
        dataset="test",
        method=method,
        seed=3,
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        decoder=DecoderConfig(width=8, depth=1, heads=2),
        masking=MaskingConfig(mask_ratio=0.6, nearby_ratio=nearby_ratio),
        adaptation=AdaptationConfig(**adaptation),
        contrast=ContrastConfig(weight=weight, hidden=12, out=6),
    )


def perturb(method: MAE) -> None:
    """Away from zero biases and unit norms, to weights like those of a network in training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))


def metamae(inputs: Inputs = (SIGNAL,), **settings: Any) -> MetaMAE:
    """A float64 MetaMAE with perturbed weights, equal for every setting."""
    method = build_method(config_of(**settings), inputs).double()
    assert isinstance(method, MetaMAE)
    perturb(method)
    return method


def batch_of(inputs: Inputs = (SIGNAL,), tasks: int = 4, dtype: torch.dtype = torch.float64) -> Any:
    """A seeded batch."""
    generator = torch.Generator().manual_seed(1)
    whole = {
        "signal": torch.randn(tasks, 2, 16, generator=generator).to(dtype),
        "image": torch.randn(tasks, 1, 4, 6, generator=generator).to(dtype),
        "row": torch.randn(tasks, 8, generator=generator).to(dtype),
        "words": torch.randint(5, (tasks, 7), generator=generator),
    }
    return {spec.name: whole[spec.name] for spec in inputs}


def draw(method: MAE, tasks: int = 4, seed: int = 0) -> Split:
    """A seeded split."""
    return method.draw(tasks, torch.Generator().manual_seed(seed))


def rows(batch: Batch, split: Split, index: list[int]) -> tuple[dict[str, Tensor], Split]:
    """Some examples of a batch with their splits."""
    part = Split(split.support_idx[index], split.query_idx[index], split.nearby[index])
    return {name: x[index] for name, x in batch.items()}, part


def equal_counts(split: Split) -> Split:
    """The same split, with exactly the first masked token drawn as nearby in every example."""
    nearby = torch.zeros_like(split.nearby)
    nearby[:, 0] = True
    return Split(split.support_idx, split.query_idx, nearby)


def close(one: object, other: object) -> None:
    """Equal up to rounding in float64."""
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


# --- value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_step_size_zero_is_plain_masked_autoencoding_to_the_bit(kind: str) -> None:
    """z' = z: the same query loss, and a contrast of two equal views."""
    inputs = KINDS[kind]
    batch = batch_of(inputs, dtype=torch.float32)
    meta, plain = (build_method(config_of(m, step_size=0.0), inputs) for m in ("metamae", "mae"))
    split = draw(meta)
    result, expected = meta(batch, split), plain(batch, split)
    assert torch.equal(result.terms["query"], expected.loss)
    latent, refined = meta.latents(batch, split)
    assert torch.equal(latent, refined)
    view = meta.meta.contrast.projector(latent[:, 1:].mean(1))
    torch.testing.assert_close(result.terms["contrast"], nt_xent(view, view, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_query_plus_weighted_contrast(kind: str) -> None:
    """Both terms taken at the latents that `latents` returns."""
    inputs = KINDS[kind]
    method, batch = metamae(inputs, step_size=1.0, weight=0.25), batch_of(inputs)
    split = draw(method)
    result = method(batch, split)
    latent, refined = method.latents(batch, split)
    targets = method.network.tokenizer.targets(batch)
    query = method.network.query_loss(refined, targets, split).mean()
    contrast = method.meta.contrast(latent, refined)
    close(result.loss, query + 0.25 * contrast)
    close(result.terms, {"query": query, "contrast": contrast})
    assert result.terms["query"].requires_grad is False
    assert method.draw(2, torch.Generator()).support_idx.shape[0] == 2
    assert isinstance(method, Method)


def test_the_latent_moves_against_the_gradient_of_its_support_loss() -> None:
    """z' = z - alpha * gradient, every token of it: the class token moves too."""
    method, batch = metamae(step_size=0.7), batch_of()
    split = draw(method)
    latent, refined = method.latents(batch, split)
    point = latent.clone().requires_grad_()
    targets = method.network.tokenizer.targets(batch)
    for b in range(4):
        loss = method.network.support_loss(point, targets, split)[b]
        (gradient,) = torch.autograd.grad(loss, point)
        close(refined[b], latent[b] - 0.7 * gradient[b])
    assert (refined - latent).abs().amin(dim=(0, 2))[0] > 1e-6  # the class token


def test_five_small_steps_descend_the_support_loss() -> None:
    """For every example, at every step, and the first step is the one that is taken once."""
    batch = batch_of()
    method = metamae(step_size=0.05, steps=5)
    split = draw(method)
    latent, refined = method.latents(batch, split)
    targets = method.network.tokenizer.targets(batch)
    found = method.meta.adapter(
        latent, lambda z: method.network.support_loss(z, targets, split), final_loss=True
    )
    assert found.losses.shape == (6, 4)
    assert (found.losses.diff(dim=0) < 0).all()
    close(found.latent, refined)
    one = metamae(step_size=0.05, steps=1).latents(batch, split)[1]
    assert (one - refined).abs().max() > 1e-3
    again = latent
    for _ in range(5):
        again = method.meta.adapter(
            again, lambda z: method.network.support_loss(z, targets, split), steps=1
        ).latent
    close(again.detach(), refined)


# --- independence of examples ----------------------------------------------------------------


@pytest.mark.parametrize("support_mean", ["task", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_duplicating_a_batch_leaves_every_inner_step_unchanged(
    kind: str, support_mean: str
) -> None:
    """The gradient is of a sum over tasks: a mean would halve every step here."""
    inputs = KINDS[kind]
    method, batch = metamae(inputs, step_size=2.0, support_mean=support_mean), batch_of(inputs)
    split = draw(method)
    if support_mean == "batch":
        split = equal_counts(split)
    _, refined = method.latents(batch, split)
    _, doubled = method.latents(*rows(batch, split, [0, 1, 2, 3] * 2))
    close(doubled, torch.cat([refined, refined]))
    _, alone = method.latents(*rows(batch, split, [2]))
    close(alone[0], refined[2])


def test_a_refined_latent_does_not_depend_on_the_other_rows() -> None:
    """Other data, other masks, other nearby counts beside it: row 0 stays, the others change."""
    method, batch = metamae(step_size=2.0), batch_of()
    split, other = draw(method), draw(method, seed=1)
    _, refined = method.latents(batch, split)
    changed = {"signal": torch.cat([batch["signal"][:1], batch["signal"][1:].flip(0) + 1])}
    mixed = Split(
        torch.cat([split.support_idx[:1], other.support_idx[1:]]),
        torch.cat([split.query_idx[:1], other.query_idx[1:]]),
        torch.cat([split.nearby[:1], ~other.nearby[1:]]),
    )
    _, beside = method.latents(changed, mixed)
    close(beside[0], refined[0])
    assert (beside[1:] - refined[1:]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_batch_mean_depends_on_the_luck_of_the_others_as_published() -> None:
    """With other counts beside it the step scales by count / mean count, and is no longer own."""
    batch = batch_of()
    task, mean = metamae(step_size=2.0), metamae(step_size=2.0, support_mean="batch")
    split = draw(task)
    counts = split.support_idx.shape[1] + split.nearby.sum(1)
    assert len(counts.unique()) > 1
    latent, by_task = task.latents(batch, split)
    _, by_batch = mean.latents(batch, split)
    ratio = (counts / counts.double().mean())[:, None, None]
    close(by_batch - latent, ratio * (by_task - latent))


# --- second order ----------------------------------------------------------------------------


def gradients(method: MetaMAE, batch: Batch, split: Split) -> dict[str, Tensor]:
    """Gradient of the loss in every parameter."""
    names, parameters = zip(*method.named_parameters(), strict=True)
    grads = torch.autograd.grad(method(batch, split).loss, parameters)
    return dict(zip(names, grads, strict=True))


@contextmanager
def shifted(parameter: nn.Parameter, by: Tensor) -> Iterator[None]:
    """A parameter moved for a moment."""
    start = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(by)
    yield
    with torch.no_grad():
        parameter.copy_(start)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_order_part_equals_finite_differences(kind: str, steps: int) -> None:
    """On its own: finite differences minus the first-order gradient, along random directions.

    At initialisation with the published step size this part is 1e-4 of the whole, so a test of the
    whole gradient would pass without it. Here the step is large, and the part is not small.
    """
    inputs = KINDS[kind]
    settings: dict[str, Any] = {"step_size": 3.0 / steps, "steps": steps}
    exact, cheap = (
        metamae(inputs, **settings),
        metamae(inputs, differentiation="first_order", **settings),
    )
    batch = batch_of(inputs)
    split = draw(exact)
    losses = exact(batch, split).loss, cheap(batch, split).loss
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    whole, first = gradients(exact, batch, split), gradients(cheap, batch, split)
    generator, step, shares = torch.Generator().manual_seed(0), 1e-5, []
    for name, parameter in exact.named_parameters():
        if name.startswith("meta.contrast"):
            close(whole[name], first[name])  # the projector is not in the inner loss
            continue
        direction = torch.randn(parameter.shape, generator=generator).double()
        values = []
        for sign in (1, -1):
            with torch.no_grad(), shifted(parameter, sign * step * direction):
                values.append(exact(batch, split).loss.item())
        measured = (values[0] - values[1]) / (2 * step)
        total, part = ((g[name] * direction).sum().item() for g in (whole, first))
        norm = whole[name].norm().item()
        assert measured - part == pytest.approx(total - part, rel=1e-5, abs=1e-7 * norm), name
        shares.append((whole[name] - first[name]).norm().item() / norm)
    assert min(shares) > 1e-4
    assert max(shares) > 1e-2


def test_without_a_step_both_orders_have_one_gradient() -> None:
    """The difference is all in the step."""
    batch = batch_of()
    exact = metamae(step_size=0.0)
    cheap = metamae(step_size=0.0, differentiation="first_order")
    close(gradients(exact, batch, draw(exact)), gradients(cheap, batch, draw(exact)))


def test_first_order_still_reaches_every_parameter() -> None:
    """Through z, the outer decoding and the contrast."""
    method = metamae(step_size=1.0, differentiation="first_order")
    for name, gradient in gradients(method, batch_of(), draw(method)).items():
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("differentiation", "plain"),
    [("unrolled", 1), ("checkpointed", 1), ("first_order", 0), ("finite_difference", 0)],
)
def test_only_what_is_differentiated_twice_uses_plain_attention(
    differentiation: str, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner decoder, under an exact policy. Encoder and outer decoder are always fused."""
    calls = []

    def counted(*given: Tensor) -> Tensor:
        calls.append(given)
        return plain_attention(*given)

    monkeypatch.setattr("metamae.model.transformer.plain_attention", counted)
    method = metamae(step_size=0.5, differentiation=differentiation)
    method(batch_of(), draw(method))
    assert len(calls) == plain * len(method.network.decoder.blocks)


def test_a_loss_that_was_promised_one_derivative_is_refused_by_name() -> None:
    """Fused attention has no second derivative."""
    method, batch = metamae(step_size=0.5), batch_of()
    split, targets = draw(method), method.network.tokenizer.targets(batch)
    latent = method.network.encode(method.network.visible_tokens(batch, split))
    with pytest.raises(SecondDerivativeError, match="fused attention"):
        method.meta.adapter(
            latent, lambda z: method.network.support_loss(z, targets, split, second_order=False)
        )


@pytest.mark.parametrize("learned", ["scalar", "channel", "step", "channel_step"])
def test_learned_step_sizes_get_their_own_gradients(learned: str) -> None:
    """One per channel of the latent and per step, and each of them matters."""
    method, batch = metamae(step_size=0.5, steps=2, learned=learned), batch_of()
    (sizes,) = method.meta.adapter.step_size.parameters()
    assert sizes.shape == (2 if "step" in learned else 1, 16 if "channel" in learned else 1)
    method(batch, draw(method)).loss.backward()
    assert (sizes.grad.abs() > 0).all()


# --- class token, contrast -------------------------------------------------------------------


def test_the_class_token_is_refined_but_not_pooled() -> None:
    """Changing it when the views are pooled leaves the contrast unchanged."""
    method, batch = metamae(step_size=1.0), batch_of()
    latent, refined = method.latents(batch, draw(method))
    assert (latent[:, 0] - refined[:, 0]).abs().max() > 1e-4
    contrast = method.meta.contrast
    value = contrast(latent, refined)
    for place, matters in [(0, False), (1, True), (-1, True)]:
        changed = refined.clone()
        changed[:2, place] += 10
        assert (not torch.equal(contrast(latent, changed), value)) is matters


def test_weight_zero_builds_no_contrast() -> None:
    """No projector, no term, and a batch of one example is allowed."""
    method = metamae(weight=0.0)
    assert method.meta.contrast is None
    assert not any("projector" in name for name in method.state_dict())
    batch, split = rows(batch_of(), draw(method), [0])
    result = method(batch, split)
    assert list(result.terms) == ["query"]
    assert torch.equal(result.loss.detach(), result.terms["query"])
    with pytest.raises(ValueError, match="B >= 2 tasks"):
        metamae(weight=0.1)(batch, split)


def test_the_contrast_has_the_configured_temperature_and_sizes() -> None:
    """From the configuration, not from defaults."""
    contrast = metamae().meta.contrast
    assert isinstance(contrast, TaskContrastiveLoss)
    assert contrast.temperature == 0.5
    assert [tuple(p.shape) for p in contrast.projector.parameters()] == [
        (12, 16),
        (12,),
        (12,),
        (6, 12),
    ]


# --- building --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_methods_with_one_seed_share_encoder_and_decoder_bit_for_bit(kind: str) -> None:
    """So that a comparison of methods is one of objectives; another seed starts elsewhere."""
    plain, random = (build_method(config_of(m), KINDS[kind]) for m in ("mae", "random"))
    meta = build_method(config_of(learned="channel"), KINDS[kind])
    state = meta.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name
        assert torch.equal(random.state_dict()[name], value), name
    extra = {name.split(".")[1] for name in state.keys() - plain.state_dict().keys()}
    assert extra == {"adapter", "contrast"}
    values = config_of("mae").to_dict() | {"seed": 4}
    other = build_method(Config.from_dict(values), KINDS[kind]).state_dict()
    key = "network.encoder.class_token"
    assert not torch.equal(other[key], state[key])


@pytest.mark.parametrize("method", ["mae", "metamae"])
def test_building_leaves_the_global_random_state_untouched(method: str) -> None:
    """And does not depend on it."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = build_method(config_of(method), (SIGNAL,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    close(one.state_dict(), build_method(config_of(method), (SIGNAL,)).state_dict())


def test_no_weight_is_registered_twice() -> None:
    """The meta-objective borrows the encoder, it does not own it."""
    method = metamae(learned="scalar")
    state = method.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert not any(name.startswith("meta.encoder") for name in state)
    owned = [method.network, method.meta.contrast, method.meta.adapter]
    assert sum(p.numel() for p in method.parameters()) == sum(
        p.numel() for module in owned for p in module.parameters()
    )
    other = build_method(config_of(learned="scalar"), (SIGNAL,)).double()
    other.load_state_dict(state, strict=True)
    batch, split = batch_of(), draw(method)
    assert torch.equal(other(batch, split).loss, method(batch, split).loss)


def test_a_copy_is_independent_of_the_original() -> None:
    """The borrowed encoder of a copy is the copy's: weight averages and sweeps rely on it."""
    method, batch = metamae(), batch_of()
    split, twin = draw(method), copy.deepcopy(method)
    value = method(batch, split).loss
    assert torch.equal(twin(batch, split).loss, value)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.zero_()
    assert torch.equal(twin(batch, split).loss, value)


# --- running ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bfloat16_trains_on_float32_losses(kind: str) -> None:
    """Finite, within bfloat16's precision of float32, and every parameter gets a gradient."""
    inputs = KINDS[kind]
    method, batch = metamae(inputs).float(), batch_of(inputs, dtype=torch.float32)
    split = draw(method)
    expected = method(batch, split).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch, split).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.03)
    assert loss.item() != expected  # autocast did something
    loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_monitor_measures_the_descent_and_leaves_no_trace(kind: str) -> None:
    """No gradients, no grad mode, no batch statistics; and before > after for a small step."""
    inputs = KINDS[kind]
    method, batch = metamae(inputs, step_size=0.05), batch_of(inputs)
    split = draw(method)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    numbers = method.monitor(batch, split)
    latent, refined = method.latents(batch, split)
    targets = method.network.tokenizer.targets(batch)
    for key, z in (("support_before", latent), ("support_after", refined)):
        loss = method.network.support_loss(z, targets, split).mean().item()
        assert numbers[key] == pytest.approx(loss, rel=1e-9)
    assert numbers["support_before"] > numbers["support_after"]
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.is_grad_enabled()
    assert not latent.requires_grad
    assert not refined.requires_grad
    for name, value in method.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_plain_masked_autoencoding_has_one_term_and_one_latent() -> None:
    """The contract of all methods, without refinement."""
    method = build_method(config_of("mae"), (SIGNAL,)).double()
    batch, split = batch_of(), draw(method)
    assert type(method) is MAE
    assert isinstance(method, Method)
    result = method(batch, split)
    assert torch.equal(result.terms["query"], result.loss.detach())
    latent, refined = method.latents(batch, split)
    assert torch.equal(latent, refined)
    query = method.network.query_loss(latent, method.network.tokenizer.targets(batch), split)
    close(result.loss.detach(), query.mean().detach())
    assert method.monitor(batch, split) == {}
    close(method.features(batch), method.network.features(batch))


@pytest.mark.parametrize("method", ["mae", "metamae"])
def test_a_batch_that_does_not_fit_is_named(method: str) -> None:
    """Before any computation."""
    built = build_method(config_of(method), (SIGNAL,))
    split = draw(built)
    with pytest.raises(InputError, match=r"got \['sound'\]"):
        built({"sound": torch.zeros(4, 2, 16)}, split)
    with pytest.raises(InputError, match=r"token grid \(8,\), got \(9,\)"):
        built({"signal": torch.zeros(4, 2, 18)}, split)


def test_second_order_gradients_of_a_cross_decoder_equal_finite_differences() -> None:
    """Two policies that share no derivative: exact, and one of first derivatives alone."""
    config = make_config(
        "digits",
        overrides=[
            "decoder.attention=cross",
            "decoder.width=8",
            "encoder.width=16",
            "encoder.depth=1",
            "adaptation.step_size=50",
            "contrast.weight=0",
        ],
    )
    data = load_dataset("digits")
    batch = {name: x.double() for name, x in data.pretrain.batch(range(6)).items()}
    gradients = []
    for policy in (Unrolled(), FiniteDifference(), FirstOrder()):
        method = build_method(config, data.inputs).double()
        assert isinstance(method, MetaMAE)
        method.meta.adapter.differentiation = policy
        loss = method(batch, method.draw(6, generator(0, "test"))).loss
        parts = torch.autograd.grad(loss, [*method.parameters()])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    exact, approximate, first = gradients
    second = (exact - first).norm()
    assert second > 1e-3 * exact.norm()
    assert (approximate - exact).norm() < 1e-7 * second
