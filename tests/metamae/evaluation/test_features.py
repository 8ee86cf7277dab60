"""Features: eval mode, no gradients, the mean over unmasked tokens, independent of batching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metamae import MAE, TrainingError, build_method, load_dataset, make_config
from metamae.data.dataset import Partition
from metamae.data.pocket import POCKET
from metamae.evaluation.features import extract_features
from tests.tiny import SIZES

TINY = [
    *SIZES,
    *("encoder.dropout=0.5",),
]


def tiny(name: str, method: str = "metamae") -> tuple[MAE, Partition]:
    """A method with dropout 0.5, and the first 30 test rows."""
    data = load_dataset(name)
    test = data.test
    few = Partition(
        arrays={key: array[:30] for key, array in test.arrays.items()},
        inputs=test.inputs,
        scaling=test.scaling,
    )
    return build_method(make_config(name, method=method, overrides=TINY), data.inputs), few


@pytest.mark.parametrize("name", POCKET)
def test_features_are_the_mean_over_the_tokens_of_unmasked_rows(name: str) -> None:
    """Without the class token; one row of finite numbers an example, for every modality."""
    method, data = tiny(name)
    features = extract_features(method, data)
    assert features.shape == (30, 16)
    assert features.dtype == torch.float32
    network = method.eval().network
    with torch.no_grad():
        states = network.encoder(network.tokenizer(data.batch(slice(None))))
    tokens = sum(spec.tokens for spec in data.inputs)
    assert states.shape == (30, 1 + tokens, 16)
    torch.testing.assert_close(features, states[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    assert len(set(map(tuple, features.tolist()))) == 30


@pytest.mark.parametrize("name", ["sensors", "peptides", "captioned"])
@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_the_batch_size_does_not_matter(name: str, size: int) -> None:
    method, data = tiny(name)
    torch.testing.assert_close(
        extract_features(method, data, batch_size=size),
        extract_features(method, data, batch_size=16),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(mode: bool) -> None:
    """Also of the submodules."""
    method, data = tiny("sensors")
    method.train(mode)
    first, second = (extract_features(method, data) for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training is mode for module in method.modules())
    method.train()
    with torch.no_grad():
        noisy = method.features(data.batch(slice(None)))
    assert not torch.allclose(noisy, first, atol=1e-2)  # dropout would have shown


def test_the_mode_comes_back_after_an_error() -> None:
    method, data = tiny("sensors")
    values = data.arrays["signal"].copy()
    values[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        extract_features(method.train(), replace(data, arrays={"signal": values}))
    assert all(module.training for module in method.modules())


def test_no_gradient_is_kept() -> None:
    method, data = tiny("sensors")
    features = extract_features(method, data)
    assert not features.requires_grad
    assert features.grad_fn is None
    assert all(weight.grad is None for weight in method.parameters())
    assert torch.is_grad_enabled()


def test_rows_stay_in_order() -> None:
    method, data = tiny("digits")
    features = extract_features(method, data, batch_size=8)
    for row in (0, 7, 8, 29):
        alone = replace(data, arrays={"image": data.arrays["image"][row : row + 1]})
        torch.testing.assert_close(extract_features(method, alone)[0], features[row])


@pytest.mark.parametrize("length", [64, 4, 256])
def test_a_signal_of_another_length(length: int) -> None:
    """Shorter or longer than in pretraining; the own length is not special."""
    method, data = tiny("sensors")
    raw = np.tile(data.arrays["signal"], (1, 1, 2))
    (spec,) = data.inputs
    cut = replace(
        data, arrays={"signal": raw[..., :length]}, inputs=(replace(spec, length=length),)
    )
    features = extract_features(method, cut)
    assert features.shape == (30, 16)
    assert not torch.allclose(features, extract_features(method, data), atol=1e-3)
    same = replace(data, arrays={"signal": raw[..., :128]})
    assert torch.equal(extract_features(method, same), extract_features(method, data))


def test_features_that_are_not_finite_name_the_first_example() -> None:
    """Ruined weights, for instance, although every row is fine."""
    method, data = tiny("genomes")
    with torch.no_grad():
        method.network.tokenizer.embed[0].weight[2] = float("inf")
    rows = np.zeros((30, 250), np.uint8)
    rows[20, 5] = rows[25, 100] = 2
    with pytest.raises(TrainingError, match="from example 20 on"):
        extract_features(method, replace(data, arrays={"sequence": rows}), batch_size=8)
