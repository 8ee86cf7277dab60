"""Probes with a batch norm or attention in front: fitted again by hand, number by number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn.randomness import fold, seeded
from metamae import DataError, InputError, load_dataset, make_config
from metamae.cli.probe import PROBES
from metamae.config import ProbeConfig
from metamae.data.dataset import Task
from metamae.errors import ConfigError
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.features import Features
from metamae.evaluation.heads import AttentiveHead, BatchNormHead
from metamae.evaluation.probe import fit_probe
from metamae.evaluation.protocols import FITS, MORE, PROTOCOLS, describe_protocol, evaluate
from metamae.randomness import generator
from metamae.report.rows import read_results
from metamae.training import pretrain
from tests.metamae.cli.running import in_process, refused
from tests.tiny import SIZES

THREE = Task(kind="classification", metric="accuracy", classes=("a", "b", "c"))
CONFIG = ProbeConfig(epochs=6, batch_size=16, learning_rate=0.05, weight_decay=0.0)


def features(*shape: int, scale: float = 1.0) -> Features:
    random = torch.Generator().manual_seed(0)
    labels = np.arange(shape[0]) % 3
    rows = torch.randn(*shape, generator=random) + 3
    for row, label in zip(rows, labels, strict=True):
        row[..., label] += 2
    train = scale * rows
    test = scale * (rows + 0.3 * torch.randn(*shape, generator=random))
    return Features(task=THREE, train=train, train_labels=labels, test=test, test_labels=labels)


def fitted(made: Features, outputs: nn.Module, forward: object) -> np.ndarray:
    """Test predictions after the same epochs, by plain gradient code of the test's own."""
    optimiser = torch.optim.Adam(outputs.parameters(), lr=CONFIG.learning_rate)
    targets = torch.from_numpy(made.train_labels).long()
    for epoch in range(CONFIG.epochs):
        order = torch.randperm(len(targets), generator=generator(5, "probe order", epoch))
        for start in range(0, len(order) - 15, 16):
            index = order[start : start + 16]
            logits = forward(made.train[index], True)  # type: ignore[operator]
            chosen = logits.log_softmax(1)[torch.arange(16), targets[index]]
            optimiser.zero_grad()
            (-chosen.mean()).backward()
            optimiser.step()
    predictions: np.ndarray = forward(made.test, False).argmax(1).numpy()  # type: ignore[operator]
    return predictions


def test_a_batch_norm_without_weights_comes_first() -> None:
    made = features(48, 5)
    with seeded(fold(5, "probe")):
        linear = nn.Linear(5, 3)
    seen: list[tuple[Tensor, Tensor]] = []

    def forward(x: Tensor, training: bool) -> Tensor:
        if training:
            here = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
            seen.append((here[0], here[1] * len(x) / (len(x) - 1)))
        else:  # the mean over all batches
            means, variances = (torch.stack(parts).mean(0) for parts in zip(*seen, strict=True))
            here = means, variances
        return (x - here[0]) / (here[1] + 1e-6).sqrt() @ linear.weight.T + linear.bias

    expected = fitted(made, linear, forward)
    found = evaluate("batchnorm", made, CONFIG, seed=5)
    assert (found.predictions == expected).mean() > 0.97
    assert len(set(expected)) == 3
    assert found.protocol == "batchnorm"
    # Of no scale: features a thousand times as large are learned from alike.
    large = evaluate("batchnorm", features(48, 5, scale=1000.0), CONFIG, seed=5)
    assert large.train_value == pytest.approx(found.train_value, abs=0.05)


def test_a_query_weighs_the_tokens() -> None:
    made = features(48, 6, 4)
    with seeded(fold(5, "probe")):
        linear = nn.Linear(4, 3)
    both = nn.ModuleDict({"linear": linear})
    query = nn.Parameter(torch.zeros(4))
    both.register_parameter("query", query)

    def forward(x: Tensor, training: bool) -> Tensor:
        pooled = []
        for tokens in x:
            scores = torch.stack([(token * query).sum() / 2 for token in tokens])
            weights = scores.exp() / scores.exp().sum()
            pooled.append(
                sum((w * t for w, t in zip(weights, tokens, strict=True)), torch.zeros(4))
            )
        return linear(torch.stack(pooled))

    expected = fitted(made, both, forward)
    found = evaluate("attentive", made, CONFIG, seed=5)
    assert (found.predictions == expected).mean() > 0.97
    assert query.detach().abs().min() > 0
    assert len(set(expected)) == 3


def test_without_a_step_attention_is_the_mean() -> None:
    tokens = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(1))
    head = AttentiveHead(4, 2)
    torch.testing.assert_close(head(tokens), head.linear(tokens.mean(1)))
    wide = BatchNormHead(4, 2)(tokens)
    assert wide.shape == (7, 5, 2)
    assert BatchNormHead(4, 2).norm.weight is None


def test_what_they_cannot_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"all tokens \(N, L, D\) .* got \(48, 5\)"):
        evaluate("attentive", features(48, 5), CONFIG)
    tokens = features(48, 6, 4)
    for protocol in ("knn", "published", "batchnorm"):
        with pytest.raises(InputError, match=r"train features \(N, D\)"):
            evaluate(protocol, tokens, CONFIG)
    broken = tokens.train.clone()
    broken[3, 2, 1] = torch.nan
    with pytest.raises(InputError, match="finite train features"):
        evaluate("attentive", replace(tokens, train=broken), CONFIG)
    with pytest.raises(ConfigError, match=r"probe.batch_size >= 2 for the protocol batchnorm"):
        evaluate("batchnorm", features(48, 5), replace(CONFIG, batch_size=1))
    each = Task(kind="token_classification", metric="accuracy", classes=("a", "b", "c"))
    with pytest.raises(DataError, match="one label an example for the attentive probe"):
        evaluate("attentive", replace(tokens, task=each), CONFIG)


def test_they_have_names_and_settings_of_their_own() -> None:
    assert set(FITS) == {*PROTOCOLS[:3], "few-N", *MORE}
    assert describe_protocol("batchnorm", CONFIG).startswith("batch norm and linear, Adam 0.05")
    assert describe_protocol("attentive", CONFIG).startswith("attention over tokens and linear,")
    plain = fit_probe(features(48, 5), CONFIG)
    assert (plain.protocol, plain.settings) == ("published", describe_protocol("published", CONFIG))


def test_the_command_reads_tokens_where_a_protocol_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, data = in_process(capsys), load_dataset("basic_motions")
    config = make_config("basic_motions", method="random", overrides=[*SIZES, "training.steps=0"])
    pretrain(config, data, tmp_path / "run")
    quick = ("--set", "probe.epochs=2")
    done = command("probe", "run", "--protocol", "published", *MORE, *quick)
    assert done.code == 0, done.err
    rows = read_results(tmp_path / "run" / PROBES)
    assert [(row.protocol, row.variant) for row in rows] == [
        (name, "default") for name in ("published", *MORE)
    ]
    tokens = run_features(tmp_path / "run", data, pooling="all")
    assert tokens.train.shape == (40, data.inputs[0].tokens, 16)
    probe = replace(config.probe, epochs=2)
    for row, made in ((rows[1], run_features(tmp_path / "run", data)), (rows[2], tokens)):
        assert row.value == evaluate(row.protocol, made, probe, seed=config.seed).value
    refused(
        command("probe", "run", "--protocol", "attentive", "--features", "gradients"),
        "features of all tokens (N, L, D)",
    )
