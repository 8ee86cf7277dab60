"""Evaluation protocols: against closed forms and hand-made features, and blind to test labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae import ConfigError, DataError, InputError, TrainingError, load_dataset
from metamae.config.sections import ProbeConfig
from metamae.data.dataset import Array, Task
from metamae.data.pocket import POCKET
from metamae.evaluation import tuned as regularised_module
from metamae.evaluation.features import Features
from metamae.evaluation.few_labels import draw_labels
from metamae.evaluation.neighbours import predict_by_neighbours
from metamae.evaluation.protocols import (
    PROTOCOLS,
    describe_protocol,
    evaluate,
    labels_of,
)
from metamae.evaluation.result import Evaluation
from metamae.evaluation.tuned import STRENGTHS, fit_regularised, fit_tuned, hold_out

THREE = Task(kind="classification", metric="accuracy", classes=("a", "b", "c"))
TWO = Task(kind="binary", metric="accuracy", classes=("no", "yes"))
NUMBER = Task(kind="regression", metric="spearman")
TOKENS = Task(
    kind="token_classification", metric="accuracy", classes=("h", "e", "c", "pad"), ignore=3
)
QUICK = ProbeConfig(epochs=15, learning_rate=0.05)


def noisy(rows: int, task: Task, seed: int, width: int = 5) -> tuple[torch.Tensor, Array]:
    """Overlapping clusters, or a noisy linear function, of `width` features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width))
    if task.kind == "regression":
        y = x[:, 0] - 2 * x[:, 1] + rng.normal(0, 0.5, rows)
    else:
        y = np.arange(rows) % len(task.classes)
        x[:, 0] += y
        x[:, 1] -= 1.5 * (y == 1)
    return torch.from_numpy(x).float(), y


def features(task: Task, rows: int = 90, **changes: Any) -> Features:
    x, y = noisy(rows, task, 0)
    x_test, y_test = noisy(45, task, 1)
    made = Features(task=task, train=x, train_labels=y, test=x_test, test_labels=y_test)
    return replace(made, **changes)


def tokenwise(pads: int = 2) -> Features:
    """Sequences of six tokens, of which the last ones are padding; the class can be read off."""
    rng = np.random.default_rng(0)
    parts = []
    for rows in (40, 20):
        labels = rng.integers(0, 3, (rows, 6))
        labels[:, 6 - pads :] = 3
        x = np.eye(4)[labels] + rng.normal(0, 0.1, (rows, 6, 4))
        parts += [torch.from_numpy(x).float(), labels]
    return Features(
        task=TOKENS, train=parts[0], train_labels=parts[1], test=parts[2], test_labels=parts[3]
    )


# Nearest neighbours


def test_neighbours_by_hand() -> None:
    """Four training rows around the origin; votes weigh 1 + cosine."""
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    labels = np.array([0, 1, 2, 2])
    asked = torch.tensor([[5.0, 1.0], [-0.1, 0.0], [0.1, 1.0], [1.0, -1.1]])
    nearest = predict_by_neighbours(train, labels, asked, THREE, neighbours=1)
    assert nearest.tolist() == [0, 1, 2, 2]
    # All four vote: 1 + cos is 1.98 for class 0, 0.02 for class 1, and 1.2 + 0.8 for class 2.
    all_four = predict_by_neighbours(train, labels, asked[:1], THREE, neighbours=4)
    assert all_four.tolist() == [2]


def test_neighbours_agree_with_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    made = features(THREE, rows=200)
    ours = predict_by_neighbours(made.train, made.train_labels, made.test, THREE, neighbours=7)
    mean = made.train.numpy().mean(0)
    model = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: 2 - distance)
    model.fit(made.train.numpy() - mean, made.train_labels)
    assert ours.tolist() == model.predict(made.test.numpy() - mean).tolist()


def test_neighbours_of_numbers_are_averaged() -> None:
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    y = np.array([1.0, -1.0, 10.0, 20.0])
    (value,) = predict_by_neighbours(train, y, torch.tensor([[1.0, 1.0]]), NUMBER, neighbours=2)
    assert value == pytest.approx(5.5)


def test_neighbours_do_not_see_a_common_offset() -> None:
    """Pooled features of an encoder share a large part, which alone would decide cosines."""
    made = features(THREE)
    moved = replace(made, train=made.train + 100, test=made.test + 100)
    values = [evaluate("knn", one, QUICK).value for one in (made, moved)]
    assert values[0] == values[1] > 0.5


# Few labels


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=30, max_size=80),
    per_class=st.integers(1, 5),
    seed=st.integers(0, 5),
    draw=st.integers(0, 9),
)
def test_a_draw_is_balanced_and_reproducible(
    labels: list[int], per_class: int, seed: int, draw: int
) -> None:
    array = np.array(labels + [0, 1, 2, 3] * 5)
    rows = draw_labels(array, per_class, classes=4, seed=seed, draw=draw)
    assert np.bincount(array[rows], minlength=4).tolist() == [per_class] * 4
    assert len(set(rows.tolist())) == 4 * per_class
    again = draw_labels(array, per_class, classes=4, seed=seed, draw=draw)
    assert np.array_equal(rows, again)


def test_draws_seeds_and_sizes_differ() -> None:
    labels = np.arange(300) % 3
    draws = {
        tuple(draw_labels(labels, 5, classes=3, seed=seed, draw=draw))
        for seed in range(3)
        for draw in range(10)
    }
    assert len(draws) == 30
    five, ten = (set(draw_labels(labels, n, classes=3, seed=0, draw=0)) for n in (5, 10))
    assert not five <= ten


def test_a_few_label_probe_is_the_mean_over_its_draws() -> None:
    made = features(THREE)
    found = evaluate("few-5", made, QUICK, seed=3)
    x, test = made.train.double().numpy(), made.test.double().numpy()
    mean, scale = x.mean(0), x.std(0)
    values = []
    for draw in range(10):
        rows = draw_labels(made.train_labels, 5, classes=3, seed=3, draw=draw)
        probe = fit_regularised(
            (x[rows] - mean) / scale,
            made.train_labels[rows],
            THREE,
            0.1,
            scaler=regularised_module.Scaler(np.zeros(5), np.ones(5)),
        )
        values.append(np.mean(probe.predict((test - mean) / scale) == made.test_labels))
    assert found.value == pytest.approx(np.mean(values))
    assert found.spread == pytest.approx(np.std(values, ddof=1))
    assert (found.draws, found.protocol) == (10, "few-5")
    assert found.spread > 0


def test_more_labels_help() -> None:
    made = features(THREE, rows=300)
    found = [evaluate(f"few-{n}", made, QUICK) for n in (1, 50)]
    assert found[1].value - found[0].value > 0.1
    assert found[1].spread < found[0].spread


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(DataError, match="at least 31 labelled rows of every class, class 0 has 30"):
        evaluate("few-31", features(THREE), QUICK)
    with pytest.raises(DataError, match="a classification task for a few-label probe, got reg"):
        evaluate("few-1", features(NUMBER), QUICK)


# The tuned probe


def test_logistic_regression_is_at_its_minimum() -> None:
    """The gradient of the stated objective vanishes, by autograd on its formula."""
    made = features(THREE)
    for strength in (1.0, 0.01):
        probe = fit_regularised(made.train.numpy(), made.train_labels, THREE, strength)
        scaled = torch.from_numpy(probe.scaler(made.train.double().numpy()))
        weight = torch.tensor(probe.model.coef_, requires_grad=True)
        bias = torch.tensor(probe.model.intercept_, requires_grad=True)
        logits = scaled @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(made.train_labels))
        (loss + strength / 2 * weight.square().sum()).backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert weight.grad.abs().max() < 2e-4
        assert bias.grad.abs().max() < 2e-4


def test_ridge_regression_is_the_closed_form() -> None:
    made, strength = features(NUMBER), 0.1
    x, y = made.train.double().numpy(), made.train_labels
    z = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(z.T @ z / len(z) + strength * np.eye(5), z.T @ (y - y.mean()) / len(z))
    expected = (made.test.double().numpy() - x.mean(0)) / x.std(0) @ weight + y.mean()
    probe = fit_regularised(x, y, NUMBER, strength)
    np.testing.assert_allclose(probe.predict(made.test.double().numpy()), expected, atol=1e-10)


def test_noise_asks_for_a_strong_term_and_signal_for_a_weak_one() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    noisy_x = rng.normal(size=(300, 200))
    noisy_x[:, :20] += 0.4 * y[:, None]
    assert fit_tuned(noisy_x, y, TWO).strength >= 0.1
    x = rng.normal(size=(600, 1)) + rng.normal(0, 0.05, (600, 2)) + [0.0, 1.0]
    assert fit_tuned(x, (x[:, 0] > 0.02 + x[:, 1] - 1).astype(int), TWO).strength <= 0.01


@pytest.mark.parametrize("protocol", ["published", "tuned", "knn"])
@pytest.mark.parametrize("task", [THREE, TWO, NUMBER], ids=["three", "two", "number"])
def test_test_labels_change_no_prediction(protocol: str, task: Task) -> None:
    """Whatever the test labels, the same probe is fitted, and the same strength chosen."""
    made = features(task)
    shuffled = np.random.default_rng(5).permutation(made.test_labels)
    first = evaluate(protocol, made, QUICK)
    second = evaluate(protocol, replace(made, test_labels=shuffled), QUICK)
    assert first.predictions is not None
    assert second.predictions is not None
    assert np.array_equal(first.predictions, second.predictions)
    assert first.extra.get("strength") == second.extra.get("strength")
    assert first.train_value == second.train_value
    assert first.value != second.value


def test_groups_decide_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuned probe hands its groups to the cut, which keeps them whole."""
    seen: list[Any] = []
    real = hold_out

    def recording(labels: Array, groups: Array | None = None, **settings: Any) -> Any:
        fit, held = real(labels, groups, **settings)
        seen.append((set(groups[fit]), set(groups[held])) if groups is not None else None)
        return fit, held

    monkeypatch.setattr(regularised_module, "hold_out", recording)
    evaluate("tuned", features(THREE, groups=np.arange(90) // 9), QUICK)
    ((fitted, held),) = seen
    assert fitted | held == set(range(10))
    assert not fitted & held
    assert len(held) == 3


def test_a_probe_that_does_not_converge_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(
        regularised_module, "_model", lambda task: LogisticRegression(max_iter=2, warm_start=True)
    )
    with pytest.raises(TrainingError, match="to converge at strength"):
        evaluate("tuned", features(THREE), QUICK)


# Validation cuts


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 6), min_size=8, max_size=60),
    seed=st.integers(0, 3),
)
def test_a_cut_keeps_groups_whole_and_classes_present(groups: list[int], seed: int) -> None:
    group = np.array(groups)
    labels = np.arange(len(group)) % 2
    try:
        fit, held = hold_out(labels, group, seed=seed)
    except DataError:
        assert len(set(groups)) <= 7
        return
    assert sorted([*fit, *held]) == list(range(len(group)))
    assert not set(group[fit]) & set(group[held])
    assert set(labels[fit]) == {0, 1}
    assert len(held) > 0
    again = hold_out(labels, group, seed=seed)
    assert np.array_equal(fit, again[0])
    assert np.array_equal(held, again[1])


def test_the_size_of_a_cut() -> None:
    fit, held = hold_out(np.arange(100) % 4)
    assert (len(fit), len(held)) == (75, 25)
    other = hold_out(np.arange(100) % 4, seed=1)[1]
    assert set(other) != set(held)


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="3 rows in 3 groups of which no class can spare one"):
        hold_out(np.array([0, 1, 2]))
    with pytest.raises(DataError, match="in 1 groups"):
        hold_out(np.array([0, 1, 0, 1]), np.zeros(4))


GROUPS = {"sensors": 7, "genomes": 85, "peptides": 1837, "multispectral_spatial": 29, "voices": 256}


@pytest.mark.parametrize("name", GROUPS)
def test_pocket_sets_know_what_belongs_together(name: str) -> None:
    """What a cut holds out shares no group with the rest; test rows share none with training."""
    data = load_dataset(name)
    train, test = data.need("train"), data.need("test")
    assert train.labels is not None
    assert train.groups is not None
    assert test.groups is not None
    assert len(np.unique(train.groups)) == GROUPS[name]
    fit, held = hold_out(train.labels, train.groups)
    assert not set(train.groups[fit]) & set(train.groups[held])
    assert 0.15 < len(held) / len(train) < 0.45
    if name in ("sensors", "peptides", "voices"):
        assert not set(train.groups) & set(test.groups)


# Token-wise tasks


def test_padding_is_left_out_and_reported_beside() -> None:
    made = tokenwise()
    for protocol in ("published", "tuned"):
        found = evaluate(protocol, made, replace(QUICK, epochs=40, learning_rate=0.05))
        assert found.predictions is not None
        real = made.test_labels != 3
        right = found.predictions == made.test_labels
        assert found.value == right[real].mean()
        assert found.extra["with_ignored"] == right.mean()
        assert found.value == 1.0
    # The tuned probe never learns padding, so that only one of the two numbers is perfect.
    assert found.extra["with_ignored"] == pytest.approx(4 / 6)


def test_a_token_probe_learns_padding_as_a_class() -> None:
    found = evaluate("published", tokenwise(), replace(QUICK, epochs=40, learning_rate=0.05))
    assert found.extra["with_ignored"] == 1.0


def test_only_padding_has_no_accuracy() -> None:
    made = tokenwise()
    padded = replace(made, test_labels=np.full_like(made.test_labels, 3))
    with pytest.raises(DataError, match="labels other than the ignored 'pad'"):
        evaluate("published", padded, QUICK)


@pytest.mark.parametrize("protocol", ["knn", "few-5"])
def test_protocols_that_do_not_suit_tokens(protocol: str) -> None:
    with pytest.raises(DataError, match="use the published or the tuned probe"):
        evaluate(protocol, tokenwise(), QUICK)


def test_token_labels_must_fit_token_features() -> None:
    made = tokenwise()
    with pytest.raises(InputError, match=r"train features \(N, L, D\) and labels \(N, L\)"):
        evaluate("published", replace(made, train=made.train[:, 0]), QUICK)


# All protocols


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_results_are_functions_of_the_seed(protocol: str) -> None:
    made = features(THREE)
    first, again = (evaluate(protocol, made, QUICK, seed=2) for _ in range(2))

    assert isinstance(first, Evaluation)
    assert first == again
    assert first.protocol == protocol
    assert first.settings == describe_protocol(protocol, QUICK)
    assert 1 / 3 < first.value <= 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_refuses_what_is_not_finite_or_absent(protocol: str) -> None:
    made = features(THREE)
    broken = made.train.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(InputError, match="finite train features"):
        evaluate(protocol, replace(made, train=broken), QUICK)
    kept = made.train_labels < 2
    missing = replace(made, train=made.train[kept], train_labels=made.train_labels[kept])
    with pytest.raises(DataError, match="none is there for: c"):
        evaluate(protocol, missing, QUICK)


def test_names_of_protocols() -> None:
    assert [labels_of(name) for name in PROTOCOLS] == [0, 0, 0, 1, 5, 10]
    for name in ("few", "few-0", "few-1.5", "linear"):
        with pytest.raises(ConfigError, match="expected a protocol among published, tuned, knn"):
            labels_of(name)
    assert len({describe_protocol(name, QUICK) for name in PROTOCOLS}) == len(PROTOCOLS)


def test_every_pocket_set_has_labels_for_every_protocol() -> None:
    for name in POCKET:
        data = load_dataset(name)
        labels, test = data.need("train").labels, data.need("test").labels
        assert labels is not None
        assert test is not None
        rng = np.random.default_rng(0)
        made = Features(
            task=data.need_task(),
            train=torch.from_numpy(rng.normal(size=(len(labels), 2))).float(),
            train_labels=labels,
            test=torch.from_numpy(rng.normal(size=(len(test), 2))).float(),
            test_labels=test,
            groups=data.need("train").groups,
        )
        for protocol in ("tuned", "few-10"):
            assert 0 <= evaluate(protocol, made, QUICK).value < 0.7


def test_strengths_are_tried_from_the_strongest() -> None:
    assert list(STRENGTHS) == sorted(STRENGTHS, reverse=True)


def _features(labels: Any, task: Task, rows: int = 40) -> Features:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return Features(task=task, train=x, train_labels=labels, test=x, test_labels=labels)


@pytest.mark.parametrize("protocol", ["tuned", "few-1", "few-5"])
def test_one_class_leaves_nothing_to_tell_apart(protocol: str) -> None:
    for task in (
        Task(kind="binary", metric="accuracy", classes=("a", "b")),
        Task(kind="classification", metric="accuracy", classes=("a",)),
    ):
        with pytest.raises(DataError, match="two classes or more"):
            evaluate(protocol, _features(np.zeros(40, np.int64), task), ProbeConfig())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_row_is_no_training(protocol: str) -> None:
    task = Task(kind="binary", metric="accuracy", classes=("a", "b"))
    with pytest.raises(InputError, match="expected two training rows or more"):
        evaluate(protocol, _features(np.zeros(1, np.int64), task, rows=1), ProbeConfig())


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.array(["a", "b"] * 20), InputError),
        (["a", "b"] * 20, InputError),
        (np.array([0, 1] * 20, object), InputError),
        (np.full(40, 5), DataError),
        (np.arange(40) % 2 * 0.7, DataError),
        (np.array([0, 1] * 20) * 1j, InputError),
    ],
)
def test_labels_that_are_no_classes(labels: Any, error: type[Exception]) -> None:
    task = Task(kind="binary", metric="accuracy", classes=("a", "b"))
    for protocol in ("published", "tuned", "knn", "few-1"):
        with pytest.raises(error, match="expected"):
            evaluate(protocol, _features(labels, task), ProbeConfig(epochs=1))


def test_a_binary_task_has_two_classes() -> None:
    for classes in (("a",), ("a", "b", "c")):
        with pytest.raises(DataError, match="expected two classes in a binary task"):
            Task(kind="binary", metric="accuracy", classes=classes)
