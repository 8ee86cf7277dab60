"""Inner gradients as features: against autograd of one example at a time in float64."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

import metamae
from metamae import load_dataset, make_config
from metamae.cli.probe import PROBES
from metamae.errors import ConfigError
from metamae.evaluation.candidates import POOLED
from metamae.evaluation.feature_cache import FEATURES, Pooling, run_features
from metamae.evaluation.inner_gradients import gradient_features, inner_gradients, projection
from metamae.inputs import Image, Inputs, Tabular, Tokens
from metamae.methods import MAE, build_method
from metamae.methods.metamae import MetaMAE
from metamae.model.masking import Split
from metamae.report.rows import read_results
from metamae.training import pretrain
from tests.metamae.cli.running import Command, in_process, refused
from tests.tiny import SIZES

MIXED: Inputs = (
    Image(name="image", channels=2, height=4, width=4, patch=(2, 2)),
    Tokens(name="words", length=3, vocabulary=5),
    Tabular(name="row", columns=4),
)


def mae_of(inputs: Inputs, method: str, *overrides: str) -> MAE:
    config = make_config("basic_motions", method=method, overrides=[*SIZES, *overrides])
    built = build_method(config, inputs).eval()
    assert isinstance(built, MAE)
    return built


def loss_of(method: MAE, latent: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Of one example with all tokens visible, from its predictions: no code of the support loss."""
    network, inputs = method.network, method.network.inputs
    total = sum(spec.tokens for spec in inputs)
    none = torch.zeros(1, 0, dtype=torch.int64)
    split = Split(
        torch.arange(total)[None], none, none.bool(), visible=tuple(s.tokens for s in inputs)
    )
    losses = []
    for spec in inputs:
        predicted = network.predict(latent, split)[spec.name][0][0]
        target = spec.patchify(batch[spec.name])[0]
        if isinstance(spec, Tokens):
            chances = predicted.softmax(-1)
            losses.append(-chances[torch.arange(spec.tokens), target].log().mean())
        else:
            losses.append(((predicted - target) ** 2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("method_name", ["mae", "metamae"])
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_they_are_those_of_single_examples(method_name: str, attention: str) -> None:
    method = mae_of(MIXED, method_name, f"decoder.attention={attention}").double()
    random = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(3, 2, 4, 4, generator=random, dtype=torch.float64),
        "words": torch.randint(0, 5, (3, 3), generator=random),
        "row": torch.randn(3, 4, generator=random, dtype=torch.float64),
    }
    found = inner_gradients(method, batch)
    assert found.shape == (3, 12, 16)
    for b in range(3):
        one = {name: x[b : b + 1] for name, x in batch.items()}
        latent = method.network.encode(method.network.tokenizer(one)).detach().requires_grad_()
        (expected,) = torch.autograd.grad(loss_of(method, latent, one), latent)
        torch.testing.assert_close(found[b], expected[0], rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in method.parameters())


def test_of_metamae_they_are_the_first_inner_step() -> None:
    """(z - z') / alpha, of the adapter itself."""
    data = load_dataset("basic_motions")
    method = mae_of(data.inputs, "metamae", "adaptation.step_size=0.25").double()
    assert isinstance(method, MetaMAE)
    batch = {k: x.double() for k, x in data.need("test").batch(slice(0, 4)).items()}
    size = data.inputs[0].tokens
    none = torch.zeros(4, 0, dtype=torch.int64)
    split = Split(torch.arange(size).expand(4, -1), none, none.bool(), visible=(size,))
    latent, refined = method.latents(batch, split)
    expected = (latent - refined) / 0.25
    torch.testing.assert_close(inner_gradients(method, batch), expected, rtol=1e-8, atol=1e-10)


def test_they_are_projected_by_signs_and_joined() -> None:
    data = load_dataset("basic_motions")
    method, rows = mae_of(data.inputs, "mae"), data.need("test")
    found = gradient_features(method, rows, batch_size=7)
    signs = projection(found.shape[1] // 2 * (1 + data.inputs[0].tokens), 16, 0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05
    batch = rows.batch(slice(None))
    features = method.features(batch).detach().double().numpy()
    gradients = inner_gradients(method, batch).flatten(1).double().numpy()
    projected = np.stack([[g @ column for column in signs.double().numpy().T] for g in gradients])
    for half, values in zip(
        found.numpy().reshape(-1, 2, 16).swapaxes(0, 1), (features, projected), strict=True
    ):
        size = np.sqrt((values**2).mean(1, keepdims=True))
        assert np.allclose(half, values / size, atol=1e-4)
    other = gradient_features(method, rows, seed=1)
    assert torch.equal(other[:, :16], found[:, :16])
    assert not torch.allclose(other[:, 16:], found[:, 16:], atol=0.1)
    assert not method.training


def test_every_kind_of_features_has_words() -> None:
    assert tuple(FEATURES) == tuple(POOLED) == get_args(Pooling)


def test_they_are_probed_kept_and_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command: Command = in_process(capsys)
    data = load_dataset("basic_motions")
    sizes = [*SIZES, "training.steps=2", "training.batch_size=8"]
    pretrain(
        make_config("basic_motions", method="metamae", overrides=sizes), data, tmp_path / "run"
    )
    for features in ("mean", "gradients"):
        done = command("probe", "run", "--protocol", "knn", "--features", features)
        assert done.code == 0, done.err
    plain, joined = read_results(tmp_path / "run" / PROBES)
    assert (plain.variant, joined.variant) == ("default", "gradients")
    assert joined.settings == f"{plain.settings}, mean of tokens beside inner gradients"
    kept = run_features(tmp_path / "run", data, pooling="gradients")
    assert (tmp_path / "run" / "features-basic_motions-gradients.pt").is_file()
    encoder = metamae.load(tmp_path / "run")
    expected = encoder.embed_gradients(data.need("test"))
    assert np.allclose(kept.test.numpy(), expected, atol=1e-5)
    done = command("embed", "run", "basic_motions", "--features", "gradients", "--out", "z.npy")
    assert done.code == 0, done.err
    assert np.array_equal(np.load("z.npy"), expected)
    both = ("--tokens", "--features", "gradients", "--out", "z.npy")
    refused(command("embed", "run", "basic_motions", *both), "got both; leave out one")


def test_what_has_no_decoder_has_none() -> None:
    data = load_dataset("basic_motions")
    config = make_config("basic_motions", method="shed", overrides=SIZES)
    with pytest.raises(ConfigError, match="a masked autoencoder for gradients, got ShED"):
        gradient_features(build_method(config, data.inputs), data.need("test"))
