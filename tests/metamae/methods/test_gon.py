"""Gradient origin networks: the step from zero, and nothing of an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metamae
from metamae import load_dataset, make_config
from metamae.artefact import export
from metamae.errors import ConfigError, ExportError, InputError
from metamae.evaluation.features import extract_features
from metamae.evaluation.inner_gradients import inner_gradients
from metamae.inputs import Inputs, Tokens
from metamae.methods.building import build_method
from metamae.methods.gon import GON
from metamae.model.masking import Split
from metamae.training import pretrain
from metamae.training.compiling import CompiledLoss
from metamae.training.memory import training_bytes
from tests.metamae.methods.test_metamae import (
    KINDS,
    SIGNAL,
    batch_of,
    close,
    config_of,
    draw,
    perturb,
)
from tests.tiny import SIZES


def gon(inputs: Inputs = (SIGNAL,), **adaptation: Any) -> GON:
    """In float64, with perturbed weights."""
    method = build_method(config_of("gon", **adaptation), inputs).double()
    assert isinstance(method, GON)
    perturb(method)
    return method


def token_loss(method: GON, hidden: Tensor, targets: dict[str, Tensor], joint: int) -> Tensor:
    """Loss of one token of one example, at its joint index, from the decoder's state of it."""
    number, specs = 0, method.network.inputs
    while joint >= specs[number].tokens:
        joint -= specs[number].tokens
        number += 1
    spec = specs[number]
    output = method.network.heads[number].weight @ hidden + method.network.heads[number].bias
    target = targets[spec.name][joint]
    if isinstance(spec, Tokens):
        logits = method.network.tokenizer.embed[number].weight @ output
        return torch.log(torch.exp(logits - logits[int(target)]).sum())
    return ((output - target) ** 2).mean()


def losses_of(
    method: GON, batch: dict[str, Tensor], split: Split, latent: Tensor, b: int
) -> tuple[Tensor, Tensor]:
    """Support and query loss of one example, token after token, means over inputs."""
    part = Split(
        *(x[b : b + 1] for x in (split.support_idx, split.query_idx, split.nearby)),
        visible=split.visible,
    )
    hidden = method.network.decoder(latent[b : b + 1], part, slice(1, None), second_order=True)[0]
    index = torch.cat([part.support_idx[0], part.query_idx[0]]).tolist()
    seen = [True] * part.support_idx.shape[1] + part.nearby[0].tolist()
    masked = [n >= part.support_idx.shape[1] for n in range(len(index))]
    targets = {s.name: s.patchify(batch[s.name])[b] for s in method.network.inputs}
    losses = [token_loss(method, hidden[n], targets, i) for n, i in enumerate(index)]
    ends = np.cumsum([spec.tokens for spec in method.network.inputs])
    owner = [int(np.searchsorted(ends, i, side="right")) for i in index]

    def mean(chosen: list[bool]) -> Tensor:
        by_input = [
            torch.stack([x for x, o, c in zip(losses, owner, chosen, strict=True) if c and o == n])
            for n in range(len(ends))
        ]
        return torch.stack([x.mean() for x in by_input]).mean()

    return mean(seen), mean(masked) if any(masked) else latent.new_zeros(())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_latent_after_a_step_from_zero(kind: str) -> None:
    """And so are all gradients: the step is differentiated through."""
    inputs = KINDS[kind]
    method, batch = gon(inputs), batch_of(inputs)
    split = draw(method)
    visible = split.support_idx.shape[1]
    result = method(batch, split)
    queries, latents = [], []
    for b in range(4):
        zero = torch.zeros(4, 1 + visible, 16, dtype=torch.float64, requires_grad=True)
        support, _ = losses_of(method, batch, split, zero, b)
        (gradient,) = torch.autograd.grad(visible * support, zero, create_graph=True)
        latents.append(-gradient[b])
        queries.append(losses_of(method, batch, split, -gradient, b)[1])
    expected = torch.stack(queries).mean()
    close(result.loss, expected)
    before, after = method.latents(batch, split)
    assert not before.any()
    close(after, torch.stack(latents))
    found = torch.autograd.grad(result.loss, list(method.parameters()))
    close(found, torch.autograd.grad(expected, list(method.parameters())))
    assert all(gradient.any() for gradient in found)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_step_from_zero_on_all_tokens(kind: str) -> None:
    """Pooled without the class token; and of them the inner gradients are multiples."""
    inputs = KINDS[kind]
    method, batch = gon(inputs), batch_of(inputs)
    length = sum(spec.tokens for spec in inputs)
    none = torch.empty(4, 0, dtype=torch.int64)
    whole = Split(
        torch.arange(length).expand(4, -1),
        none,
        none.bool(),
        visible=tuple(spec.tokens for spec in inputs),
    )
    zero = torch.zeros(4, 1 + length, 16, dtype=torch.float64, requires_grad=True)
    losses = torch.stack([losses_of(method, batch, whole, zero, b)[0] for b in range(4)])
    (gradient,) = torch.autograd.grad(length * losses.sum(), zero)
    with torch.no_grad():
        close(method.network.token_features(batch), -gradient[:, 1:])
        close(method.features(batch), -gradient[:, 1:].mean(1))
    close(inner_gradients(method, batch), gradient)


def test_nothing_of_an_encoder_is_there() -> None:
    method = gon()
    assert not hasattr(method.network, "encoder")
    names = [name for name, _ in method.named_parameters()]
    assert all(name.startswith(("network.decoder", "network.heads")) for name in names)
    words = [n for n, _ in gon(KINDS["words"]).named_parameters() if "tokenizer" in n]
    assert words == ["network.tokenizer.embed.0.weight"]  # the decoder's table too
    other = build_method(config_of("mae"), (SIGNAL,)).state_dict()
    start = build_method(config_of("gon"), (SIGNAL,)).state_dict()
    differing = [key for key in start if not torch.equal(start[key], other[key])]
    assert differing == ["network.decoder.embed.bias"]  # all else starts as MAE's decoder
    whole, without = (
        training_bytes(make_config("sensors", method=name)) for name in ("mae", "gon")
    )
    assert without < whole


def test_the_class_token_moves_about_as_far_as_others_at_the_start() -> None:
    """At a bias of zero its layer norm has a derivative of 300, and it moved far more."""
    method = build_method(config_of("gon"), (SIGNAL,))
    batch = batch_of(dtype=torch.float32)

    def ratio() -> float:
        norms = method.latents(batch, draw(method))[1].norm(dim=2)
        return float(norms[:, 0].mean() / norms[:, 1:].mean())

    good = ratio()
    with torch.no_grad():
        method.network.decoder.embed.bias.zero_()
    assert good < 2 < 20 < ratio()


def test_one_step_is_affine_in_the_data_and_two_are_not() -> None:
    batch, other = batch_of()["signal"], batch_of()["signal"].flip(0)
    for steps, affine in ((1, True), (2, False)):
        method = gon(steps=steps)
        with torch.no_grad():
            between, *ends = (
                method.features({"signal": x}) for x in ((batch + other) / 2, batch, other)
            )
        assert torch.allclose(between, (ends[0] + ends[1]) / 2, rtol=1e-9, atol=1e-11) is affine


def test_settings_of_the_step_are_those_of_metamae_but_for_its_size() -> None:
    """Learned and held step sizes, policies, chunks; monitors are means over tokens."""
    method, batch = gon(learned="channel", step_size=7.0), batch_of()
    assert float(method.adapter.step_size(0, 0).detach().mean()) == pytest.approx(1, abs=0.5)
    held = gon(reduction=0.2)
    assert held.observes_every > 0
    before = float(held.adapter.step_size(0, 0))
    held.observe(batch, draw(held))
    assert float(held.adapter.step_size(0, 0)) != before
    split, plain = draw(held), gon()
    numbers = plain.monitor(batch, split)
    zero = torch.zeros(4, 1 + split.support_idx.shape[1], 16, dtype=torch.float64)
    means = [losses_of(plain, batch, split, zero, b)[0].item() for b in range(4)]
    assert numbers["support_before"] == pytest.approx(np.mean(means), rel=1e-9)
    close(gon(chunk_size=3)(batch, split).loss, plain(batch, split).loss)
    close(gon(differentiation="first_order")(batch, split).loss, plain(batch, split).loss)


@pytest.mark.slow
def test_the_loss_can_be_traced() -> None:
    method, batch = build_method(config_of("gon"), (SIGNAL,)), batch_of(dtype=torch.float32)
    compiled = CompiledLoss(method, 4, torch.device("cpu"), backend="aot_eager")
    compiled.prepare(batch, draw(method))
    assert compiled.failure == ""
    torch.testing.assert_close(compiled(batch, draw(method)).loss, method(batch, draw(method)).loss)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on small pictures, and the same in twice two."""
    folder, data = tmp_path_factory.mktemp("gon"), load_dataset("digits")
    for name, steps in (("whole", 4), ("halves", 2), ("halves", 4)):
        config = make_config(
            "digits",
            method="gon",
            overrides=[*SIZES, f"training.steps={steps}", "seed=2", "adaptation.learned=channel"],
        )
        pretrain(config, data, folder / name, resume=name == "halves" and steps == 4)
    return folder


def test_a_run_resumes_to_the_same_bits(run: Path) -> None:
    whole, halves = (metamae.load(run / name).method.state_dict() for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert not any("encoder" in key for key in whole)
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_embeddings_are_the_trained_steps(run: Path, tmp_path: Path) -> None:
    """Of the probe, the encoder's object, its module and a saved folder; and export says no."""
    data, encoder = load_dataset("digits"), metamae.load(run / "whole")
    rows = data.test
    features = extract_features(encoder.method, rows).numpy()
    start = build_method(encoder.config, data.inputs)
    assert np.abs(extract_features(start, rows).numpy() - features).max() > 1e-4 * features.std()
    np.testing.assert_array_equal(encoder.embed(rows), features)
    np.testing.assert_allclose(encoder.embed_tokens(rows).mean(1), features, rtol=1e-4, atol=1e-5)
    assert encoder.embed_gradients(rows).shape == (len(rows), 32)
    raw = {"image": torch.from_numpy(np.asarray(rows.arrays["image"][:5], np.float32))}
    np.testing.assert_allclose(encoder.module(raw).detach(), features[:5], rtol=1e-4, atol=1e-5)
    assert encoder.reconstruct(rows).values["image"].shape == rows.arrays["image"].shape
    encoder.save(tmp_path / "saved")
    np.testing.assert_array_equal(metamae.load(tmp_path / "saved").embed(rows), features)
    for kind in ("torch", "onnx"):
        with pytest.raises(ExportError, match="got gon, whose features take a gradient"):
            export(encoder, tmp_path / "program", format=kind)
    assert not (tmp_path / "program").exists()


def test_weights_are_read_for_examples_of_another_length() -> None:
    """As an encoder's are: of other data, each of its own size."""
    config = config_of("gon")
    state = build_method(config, (SIGNAL,)).state_dict()
    longer = build_method(config, (replace(SIGNAL, length=24),))
    longer.load_state_dict(state)
    assert longer.features({"signal": torch.zeros(2, 2, 24)}).shape == (2, 16)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match=r"token grid \(8,\), got \(9,\)"):
        gon().features({"signal": torch.zeros(4, 2, 18, dtype=torch.float64)})
    with pytest.raises(ConfigError, match=r"decoder.depth >= 1 for gon"):
        build_method(make_config("sensors", method="gon", overrides=["decoder.depth=0"]), (SIGNAL,))
    for override, named in (
        ("baseline.gon.step_size=0", r"baseline.gon.step_size > 0, got 0"),
        ("learn.settings=[step_size]", "no learn.settings with method=gon"),
        ("masking.rule=hard", "masking.rule=random, or a method among"),
        ("target.kind=teacher", "target.kind=values, or a method among"),
        ("contrast.view=quantization", "contrast.view=own, or a method among"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_config("sensors", method="gon", overrides=[override])
    rough = ["adaptation.differentiation=finite_difference", "training.autocast=bfloat16"]
    with pytest.raises(ConfigError, match=r"training\.autocast=off, or another policy"):
        make_config("sensors", method="gon", overrides=rough)
