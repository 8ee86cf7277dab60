"""A short real run learns: on the smartwatch recordings, at reduced size, in a few seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metamae import build_method, load_dataset, make_config
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.probe import fit_probe
from metamae.methods.mae import MAE
from metamae.randomness import generator
from metamae.training.pretraining import pretrain

SMALLER = [
    *("encoder.width=64", "encoder.depth=2", "decoder.width=32", "decoder.depth=1"),
    *("contrast.hidden=64", "contrast.out=32", "training.steps=80", "training.batch_size=32"),
    *("training.learning_rate=3e-3", "probe.epochs=30", "probe.learning_rate=1e-2"),
]


def test_a_short_run_learns(tmp_path: Path) -> None:
    """The query loss halves, also on unseen people, and a probe beats the majority class clearly.

    Values are standardised, so the mean over all windows has a loss of about 1: below it means
    that the visible tokens of an example were used. The majority class has 0.174 of the test rows.
    """
    data = load_dataset("sensors")
    config = make_config("sensors", overrides=SMALLER)
    rows = torch.arange(0, len(data.test), 5)
    batch = data.test.batch(rows)

    def held_out(method: MAE) -> float:
        """Query loss on test rows, always with the same masks."""
        split = method.draw(len(rows), generator(0, "held out"))
        return float(method.eval()(batch, split).terms["query"])

    before = held_out(build_method(config, data.inputs))
    done = pretrain(config, data, tmp_path)
    after = held_out(done.method)
    assert after < 0.85 * float(data.test.batch(rows)["signal"].square().mean())
    assert after < 0.5 * before

    history = {name: np.array(values)[:, 1] for name, values in done.history.series.items()}
    assert history["query"][-4:].mean() < 0.5 * history["query"][0]
    # A step against the gradient of the support loss lowers the support loss.
    assert (history["support_after"] < history["support_before"]).all()

    features = Features.of(data, *compute_features(done.method, data))
    result = fit_probe(features, config.probe, seed=0)
    majority = np.bincount(features.test_labels).max() / len(data.test)
    assert 0.17 < majority < 0.18
    assert result.value > 3 * majority
