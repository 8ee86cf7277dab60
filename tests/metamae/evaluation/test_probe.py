"""Linear probe: it finds what is linear, reports its last epoch, and checks what it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metamae import DataError, InputError, TrainingError
from metamae.config.sections import ProbeConfig
from metamae.data.dataset import Array, Task
from metamae.evaluation import metrics, probe
from metamae.evaluation.features import Features
from metamae.evaluation.probe import describe_probe, fit_probe
from metamae.evaluation.probe import standardise as standardise_features
from metamae.evaluation.result import Evaluation

THREE = Task(kind="classification", metric="accuracy", classes=("a", "b", "c"))
TWO = Task(kind="binary", metric="accuracy", classes=("no", "yes"))
NUMBER = Task(kind="regression", metric="spearman")
QUICK = ProbeConfig(epochs=20, batch_size=16, learning_rate=0.1, weight_decay=0.0)


def clusters(rows: int, classes: int, seed: int) -> tuple[Tensor, Array]:
    """Well separated clusters on a circle, the classes in turn."""
    labels = np.arange(rows) % classes
    angle = 2 * np.pi * labels / classes
    noise = np.random.default_rng(seed).normal(0, 0.1, (rows, 2))
    centres = np.stack([np.cos(angle), np.sin(angle)], 1)
    return torch.from_numpy(centres + noise).float(), labels


def noisy(rows: int, classes: int, seed: int) -> tuple[Tensor, Array]:
    features, labels = clusters(rows, classes, seed)
    return features + torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)), labels


def rows(train: Tensor, labels: Array, test: Tensor, truth: Array, task: Task = THREE) -> Features:
    return Features(task=task, train=train, train_labels=labels, test=test, test_labels=truth)


def fit(
    task: Task = THREE, config: ProbeConfig = QUICK, make: Any = clusters, **settings: Any
) -> Evaluation:
    classes = len(task.classes)
    return fit_probe(rows(*make(60, classes, 0), *make(31, classes, 1), task), config, **settings)


@pytest.mark.parametrize("task", [THREE, TWO], ids=["three classes", "two classes"])
@pytest.mark.parametrize("standardise", [False, True])
def test_separable_classes_are_separated(task: Task, standardise: bool) -> None:
    result = fit(task, replace(QUICK, standardise=standardise))
    assert (result.value, result.train_value, result.metric) == (1.0, 1.0, "accuracy")
    assert result.predictions.tolist() == clusters(31, len(task.classes), 1)[1].tolist()


def test_weighted_f1_is_used_when_asked_for() -> None:
    task = replace(THREE, metric="weighted_f1")
    result = fit(task, replace(QUICK, epochs=1, learning_rate=1e-3), noisy)
    truth = noisy(31, 3, 1)[1]
    assert result.metric == "weighted_f1"
    assert result.value == metrics.METRICS["weighted_f1"](truth, result.predictions)
    assert result.value != metrics.METRICS["accuracy"](truth, result.predictions)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regression_is_least_squares(dtype: type) -> None:
    """Noisy targets, so that the solution is not an interpolation."""
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(200, 3)), rng.normal(size=(40, 3))
    y = x @ [1.0, -2.0, 0.5] + 3 + rng.normal(0, 0.3, 200)
    y_test = test @ [1.0, -2.0, 0.5] + 3
    design = np.column_stack([x, np.ones(200)])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    expected = np.column_stack([test, np.ones(40)]) @ solution
    config = ProbeConfig(epochs=400, batch_size=200, learning_rate=0.05, weight_decay=0.0)
    train_x, test_x = (torch.from_numpy(part).float() for part in (x, test))
    result = fit_probe(rows(train_x, y.astype(dtype), test_x, y_test.astype(dtype), NUMBER), config)
    np.testing.assert_allclose(result.predictions, expected, atol=1e-3)
    assert result.value > 0.99


def test_the_last_epoch_is_reported_and_the_best_one_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Test values 0.1, 0.9, 0.9, 0.4 in turn, then 0.7 on the training rows."""
    values = iter([0.1, 0.9, 0.9, 0.4, 0.7])
    seen: list[Array] = []

    def metric(truth: Array, predicted: Array) -> float:
        seen.append(predicted)
        return next(values)

    monkeypatch.setattr(metrics, "METRICS", {"accuracy": metric})
    result = fit(config=replace(QUICK, epochs=4))
    assert (result.value, result.extra) == (0.4, {"best": 0.9, "best_epoch": 2.0})
    assert result.train_value == 0.7
    assert [len(predicted) for predicted in seen] == [31, 31, 31, 31, 60]
    assert np.array_equal(result.predictions, seen[3])


def test_the_value_is_that_of_the_returned_predictions() -> None:
    result = fit(config=replace(QUICK, epochs=5), make=noisy)
    truth = noisy(31, 3, 1)[1]
    assert result.value == np.mean(truth == result.predictions)
    assert 1 / 3 < result.value < 1
    assert result.extra["best"] >= result.value


def test_predictions_depend_on_the_seed_alone() -> None:
    """Not on the global random state, which is left alone."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    config = replace(QUICK, epochs=1, learning_rate=1e-3)
    first = fit(config=config, make=noisy, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, other = (fit(config=config, make=noisy, seed=seed) for seed in (1, 2))
    assert np.array_equal(first.predictions, again.predictions)
    assert (first.value, first.train_value) == (again.value, again.train_value)
    assert not np.array_equal(first.predictions, other.predictions)


def test_a_channel_that_is_constant_in_training_is_zero() -> None:
    """Not a hundred thousand deviations away where a test row has another value."""
    train = torch.tensor([[0.1, 1.0], [0.1, 3.0]])
    scaled, other = standardise_features(train, torch.tensor([[0.2, 2.0]]))
    assert scaled[:, 0].tolist() == [0, 0]
    assert other.tolist() == [[0, 0]]


def test_batches_of_another_size_are_told() -> None:
    """Rows are kept where the words are the same."""
    words = {describe_probe(ProbeConfig(batch_size=size)) for size in (16, 64)}
    assert words == {
        describe_probe(ProbeConfig()),
        describe_probe(ProbeConfig()) + ", batches of 16",
    }


@pytest.mark.parametrize("standardise", [False, True])
def test_a_prediction_does_not_depend_on_other_test_rows(standardise: bool) -> None:
    """Standardisation takes its statistics from the training rows."""
    config = replace(QUICK, epochs=3, standardise=standardise)
    train, (x, y) = noisy(60, 3, 0), noisy(31, 3, 1)
    whole = fit_probe(rows(*train, x, y), config)
    x = x.clone()
    x[10:] *= 100
    part = fit_probe(rows(*train, x, y), config)
    assert part.predictions[:10].tolist() == whole.predictions[:10].tolist()


def test_standardising_helps_features_of_unlike_scales() -> None:
    """And a constant feature does no harm."""
    x, y = clusters(60, 3, 0)
    x = torch.cat([x * torch.tensor([1e-3, 1e-3]) + 5, torch.full((60, 1), 7.0)], 1)
    config = ProbeConfig(epochs=20, batch_size=16, learning_rate=0.1, weight_decay=0.0)
    values = {
        flag: fit_probe(rows(x, y, x, y), replace(config, standardise=flag)).value
        for flag in (False, True)
    }
    assert values[True] == 1.0 > values[False]


def test_the_last_partial_batch_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 rows in batches of 16: three updates an epoch, of full batches."""
    sizes: list[int] = []
    loss = probe._loss

    def recording(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
        sizes.append(len(outputs))
        return loss(outputs, targets, task)

    monkeypatch.setattr(probe, "_loss", recording)
    fit(config=replace(QUICK, epochs=2))
    assert sizes == [16] * 6


def test_fewer_rows_than_a_batch_make_one_batch() -> None:
    large, exact = (
        fit(config=replace(QUICK, epochs=3, batch_size=size), make=noisy) for size in (1000, 60)
    )
    assert np.array_equal(large.predictions, exact.predictions)
    assert large.train_value == exact.train_value


def test_strong_decay_shrinks_the_map() -> None:
    """Adam with L2 in the gradient: predictions of a regression go towards the mean."""
    x = torch.linspace(-1, 1, 50).unsqueeze(1)
    y = 3 * x.squeeze(1).numpy()
    config = ProbeConfig(epochs=200, batch_size=50, learning_rate=0.05, weight_decay=0.0)
    free = fit_probe(rows(x, y, x, y, NUMBER), config)
    decayed = fit_probe(rows(x, y, x, y, NUMBER), replace(config, weight_decay=1.0))
    assert np.ptp(free.predictions) == pytest.approx(6, abs=0.05)
    assert 0.5 < np.ptp(decayed.predictions) < 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": torch.zeros(60)}, r"train features \(N, D\).*got \(60,\) and \(60,\)"),
        ({"train": torch.zeros(59, 2)}, r"got \(59, 2\) and \(60,\)"),
        ({"test": torch.zeros(31, 2, 1)}, r"test features \(N, D\)"),
        ({"test_labels": np.zeros((31, 1), int)}, r"got \(31, 2\) and \(31, 1\)"),
        ({"test": torch.zeros(31, 3)}, "equal feature sizes, got 2 for training and 3"),
        ({"train": torch.full((60, 2), torch.nan)}, "finite train features"),
        ({"test": torch.full((31, 2), torch.inf)}, "finite test features"),
        (
            {"train": torch.zeros(0, 2), "train_labels": np.zeros(0, int)},
            r"got \(0, 2\) and \(0,\)",
        ),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(
    change: dict[str, Any], expected: str
) -> None:
    whole = rows(*clusters(60, 3, 0), *clusters(31, 3, 1))
    with pytest.raises(InputError, match=expected):
        fit_probe(replace(whole, **change), QUICK)


@pytest.mark.parametrize("kind", ["int16", "int32", "read-only"])
def test_labels_of_any_integer_type_and_from_a_memory_map(kind: str) -> None:
    (x, y), test = noisy(60, 3, 0), noisy(31, 3, 1)
    expected = fit_probe(rows(x, y, *test), QUICK)
    labels = y.copy() if kind == "read-only" else y.astype(kind)
    labels.flags.writeable = kind != "read-only"
    assert fit_probe(rows(x, labels, *test), QUICK).value == expected.value


def test_a_tested_class_without_training_rows_is_named() -> None:
    x, y = clusters(60, 3, 0)
    with pytest.raises(DataError, match="none is there for: c"):
        fit_probe(rows(x[y < 2], y[y < 2], x, y), QUICK)
    with pytest.raises(DataError, match=r"labels from 0 to 1, got \[2\]"):
        fit_probe(rows(x, y, x, y, TWO), QUICK)


def test_numbers_to_predict_that_are_not_finite_are_refused() -> None:
    x = torch.linspace(-1, 1, 50).unsqueeze(1)
    y = x.squeeze(1).numpy().copy()
    y[7] = np.nan
    for labels in ((y, x.squeeze(1).numpy()), (x.squeeze(1).numpy(), y)):
        with pytest.raises(InputError, match="finite"):
            fit_probe(rows(x, labels[0], x, labels[1], NUMBER), QUICK)


def test_a_probe_that_diverges_is_no_result() -> None:
    """Weights that are not finite predict class 0 everywhere, which must not pass as a number."""
    x, y = noisy(60, 3, 0)
    config = replace(QUICK, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"probe\.learning_rate"):
        fit_probe(rows(1e20 * x, y, x, y), config)
