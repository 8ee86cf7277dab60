"""Components of all tokens, against an independent computation, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metamae import load_dataset, make_config
from metamae.evaluation.components import Components, token_components
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.raw import raw_inputs
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import CHECKPOINT, load_method
from tests.tiny import SIZES


def test_components_of_all_tokens_side_by_side(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    overrides = [*SIZES, "training.steps=2", "training.batch_size=8"]
    config = make_config("basic_motions", method="mae", overrides=overrides)
    pretrain(config, data, tmp_path)
    method = load_method(tmp_path / CHECKPOINT, data.inputs).eval()

    def flat(part: str) -> np.ndarray:
        rows = data.need(part)  # type: ignore[arg-type]
        with torch.no_grad():
            tokens = method.network.token_features(rows.batch(slice(None)))
        return tokens.reshape(len(rows), -1).double().numpy()

    unlabelled = flat("pretrain")
    mean, scale = unlabelled.mean(0), unlabelled.std(0)
    _, sizes, directions = np.linalg.svd((unlabelled - mean) / scale, full_matrices=False)
    assert len(unlabelled) < min(64, len(mean))
    count = len(unlabelled) - 1  # as many directions as rows about their mean have
    unit = np.sqrt((sizes[:count] ** 2 / (len(unlabelled) - 1)).mean())
    train, test = token_components(method, data)
    assert train.shape == (len(data.need("train")), count)
    for found, part in ((train, "train"), (test, "test")):
        expected = (flat(part) - mean) / scale @ directions[:count].T / unit
        # The sign of a direction is free.
        assert np.allclose(np.abs(found.numpy()), np.abs(expected), atol=2e-3)
    kept = run_features(tmp_path, data, pooling="tokens")
    assert torch.equal(kept.train, train)
    assert torch.equal(kept.test, test)
    plain = run_features(tmp_path, data)  # kept beside it
    assert plain.train.shape == (len(train), config.encoder.width)
    assert torch.equal(run_features(tmp_path, data, pooling="tokens").test, test)
    joined = run_features(tmp_path, data, pooling="joined")
    inputs = Components(raw_inputs(data.need("pretrain")).astype(np.float64), all_of_them=True)
    block = inputs(raw_inputs(data.need("test")))
    half = np.sqrt(32 / block.shape[1])
    assert np.allclose(joined.test[:, :count], test * np.sqrt(32 / count), atol=1e-5)
    assert np.allclose(joined.test[:, count:], block * half, atol=1e-5)
    for columns in (slice(None, count), slice(count, None)):  # of unlabelled rows: half each
        variance = joined.train[:, columns].var(0).sum()
        assert 24 < variance < 40
    assert {path.name for path in tmp_path.glob("features-*.pt")} == {
        "features-basic_motions.pt",
        "features-basic_motions-tokens.pt",
        "features-basic_motions-joined.pt",
    }
