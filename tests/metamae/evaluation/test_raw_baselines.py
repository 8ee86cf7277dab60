"""What encoders have to be better than: raw inputs, components, features by hand, from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.linear_model import LogisticRegression

from metamae import DataError, load_dataset, make_config
from metamae.data.dataset import Dataset, Partition, Task
from metamae.data.own import open_data
from metamae.evaluation.candidates import CANDIDATES, applicable, plain_features, title_of
from metamae.evaluation.components import component_features, count_components
from metamae.evaluation.drawing import Drawing
from metamae.evaluation.few_labels import probe_few_labels
from metamae.evaluation.field import describe_field, field_features
from metamae.evaluation.gradients import gradient_histograms
from metamae.evaluation.kmers import count_words
from metamae.evaluation.label_curve import FrozenCurve, ScratchCurve, measure
from metamae.evaluation.learners import LEARNERS, Lesson, span
from metamae.evaluation.raw import MOST_VALUES, raw_inputs
from metamae.evaluation.scratch import learn_from_scratch
from metamae.evaluation.tuned import Scaler
from metamae.evaluation.windows import window_statistics
from metamae.inputs import Tabular, Tokens
from tests.tiny import SIZES

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def motions() -> Dataset:
    return load_dataset("basic_motions")


def two(rows: int = 60, width: int = 3) -> tuple[Array, Array]:
    """Two classes, apart along the first axis."""
    labels = np.arange(rows) % 2
    x = np.random.default_rng(0).normal(size=(rows, width))
    x[:, 0] += 4 * labels
    return x, labels


def lesson(**changes: Any) -> Lesson:
    x, labels = two()
    values = {
        "task": Task.of_classes(("a", "b")),
        "features": x[:40],
        "labels": labels[:40],
        "judged": x[40:],
        "scaler": Scaler.of(x),
        "per_class": 20,
    }
    return Lesson(**(values | changes))


def test_raw_inputs_are_the_scaled_values(motions: Dataset) -> None:
    part = motions.need("train")
    expected = part.batch(slice(0, 40))["signal"].flatten(1).numpy()
    assert np.array_equal(raw_inputs(part), expected)


def test_symbols_become_ones() -> None:
    part = load_dataset("captioned").need("test")
    few = Partition(
        arrays={name: np.asarray(array[0:5]) for name, array in part.arrays.items()},
        inputs=part.inputs,
        scaling=part.scaling,
    )
    vectors = raw_inputs(few)
    assert vectors.shape == (5, 64 + 8 * 35)
    assert vectors[:, 64:].sum(1).tolist() == [8.0] * 5
    tokens = few.batch([0])["caption"][0]
    assert vectors[0, 64 + int(tokens[0])] == 1


def test_gaps_are_zero_and_marked() -> None:
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    part = Partition(arrays={"row": x}, inputs=(Tabular(name="row", columns=2, gaps=True),))
    assert raw_inputs(part).tolist() == [[1, 1, 0, 0], [3, 1, 4, 1]]


def test_too_large_examples_are_refused_by_name() -> None:
    spec = Tabular(name="row", columns=MOST_VALUES + 1)
    part = Partition(arrays={"row": np.zeros((2, MOST_VALUES + 1))}, inputs=(spec,))
    with pytest.raises(DataError, match=f"got {MOST_VALUES + 1}; make the inputs smaller"):
        raw_inputs(part)


def test_components_have_the_variance_they_are_chosen_for() -> None:
    assert count_components(np.array([0.99, 0.01])) == 2
    assert count_components(np.full(100, 0.01)) == 64
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(80, 2)) * [3, 1]
    x = hidden @ ortho_group.rvs(6, random_state=0)[:2]
    data = open_data({"x": x, "y": np.arange(80) % 2}).dataset
    features = component_features(data)
    assert features.train.shape[1] == 2
    spread = features.train.std(0)
    assert float(spread[0]) > float(spread[1]), "components keep their relative sizes"


def test_window_statistics_know_level_slope_and_band() -> None:
    time = np.linspace(-1, 1, 64)
    series = np.stack([0 * time + 2, 3 * time, np.sin(2 * np.pi * 24 * np.arange(64) / 64)])
    statistics = window_statistics(series[None]).reshape(3, 5, 14)  # channels, windows, statistics
    whole = statistics[:, 0]
    assert whole[0, 0] == pytest.approx(2)
    assert whole[:, 4] == pytest.approx([0, 3, whole[2, 4]], abs=1e-5)
    assert int(whole[2, -4:].argmax()) == 2, "24 of 32 cycles lie in the third band"
    assert window_statistics(np.zeros((1, 2, 5))).shape == (1, 2 * 14), "one window"


def test_words_are_counted_without_padding() -> None:
    shares = count_words(np.array([[0, 1, 2, 2]]), np.array([1, 2]), 1)
    assert shares.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert count_words(np.array([[0, 0]]), np.array([1]), 1).tolist() == [[0.0]]


def test_gradients_tell_directions_apart() -> None:
    ramp = np.tile(np.arange(8.0), (8, 1))
    across, down = gradient_histograms(np.stack([ramp, ramp.T])[:, None])
    bins = across[:-2].reshape(16, 9).sum(0), down[:-2].reshape(16, 9).sum(0)
    assert bins[0].argmax() == 0
    assert bins[1].argmax() == 4


def test_tables_have_no_features_by_hand() -> None:
    data = load_dataset("tabular")
    assert describe_field(data.inputs) == ""
    assert "field" not in applicable(data)
    with pytest.raises(DataError, match="'tabular' has none"):
        field_features(data)


def test_categories_of_a_table_are_no_sequence() -> None:
    columns = Tokens(name="c", length=2, vocabulary=3, alphabet=("a=x", "a=y", "b=x"))
    assert describe_field((columns,)) == ""
    assert describe_field((Tokens(name="c", length=9, vocabulary=2, alphabet=("a", "b")),)) != ""


def test_span_changes_no_prediction() -> None:
    x, labels = two(16, 50)
    small, judged = span(x[:10], x[10:])
    assert small.shape == (10, 10)
    wide, narrow = (
        LogisticRegression(C=0.3, tol=1e-10, max_iter=5000).fit(train, labels[:10])
        for train in (x[:10], small)
    )
    np.testing.assert_allclose(
        narrow.decision_function(judged), wide.decision_function(x[10:]), atol=1e-5
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_learn(name: str) -> None:
    _, labels = two()
    predictions = LEARNERS[name](lesson())
    assert (predictions == labels[40:]).mean() > 0.85
    assert np.array_equal(predictions, LEARNERS[name](lesson())), "the same again"


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_of_numbers(name: str) -> None:
    x, _ = two()
    known = lesson(task=Task(kind="regression", metric="spearman"), labels=x[:40, 1].copy())
    assert np.corrcoef(LEARNERS[name](known), x[40:, 1])[0, 1] > 0.5


def test_trees_split_where_labels_are_few() -> None:
    x, labels = two()
    few = lesson(features=x[:8], labels=labels[:8], per_class=4)
    assert len(set(LEARNERS["trees"](few).tolist())) == 2


def test_a_curve_of_the_fixed_probe_is_the_few_label_protocol(motions: Dataset) -> None:
    """With the same draws, features and strength, both give the same numbers."""
    features = plain_features("raw", motions)
    drawing = Drawing(features.task, features.train_labels, draws=10)
    curve = FrozenCurve(CANDIDATES["raw_logistic"], features, drawing)
    ((_, values),) = measure(curve, motions, "test", [5])
    assert np.mean(values) == pytest.approx(probe_few_labels(features, 5).value, abs=1e-9)


def test_from_scratch_learns_and_repeats(motions: Dataset) -> None:
    config = make_config("basic_motions", overrides=SIZES)
    test = motions.need("test")
    rows = np.arange(0, 40, 2)
    first, again = (
        learn_from_scratch(config, motions, rows, test, np.arange(0, 40, 2), seed=1)
        for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert test.labels is not None
    assert (first == test.labels[::2]).mean() > 0.5, "four classes"


def test_from_scratch_takes_the_first_draws(motions: Dataset) -> None:
    labels = motions.need("train").labels
    assert labels is not None
    drawing = Drawing(motions.need_task(), labels, draws=12)
    config = make_config("basic_motions", overrides=SIZES)
    curve = ScratchCurve(config, motions, drawing)
    ((number, values),) = measure(curve, motions, "validation", [1])
    assert (number, len(values)) == (1, 3)


def test_from_scratch_on_numbers_predicts_in_their_units() -> None:
    x, _ = two()
    data = open_data({"x": x, "y": x[:, 0]}).dataset
    train = data.need("train")
    data = replace(data, train=replace(train, labels=1000 + 0.5 * train.labels))
    config = make_config("tabular", overrides=SIZES)
    found = learn_from_scratch(config, data, np.arange(40), data.need("test"))
    assert found.min() > 900
    assert np.isfinite(found).all()


def test_titles_say_what_is_learned() -> None:
    x, _ = two()
    numbers = open_data({"x": x, "y": x[:, 0]}).dataset
    assert title_of(CANDIDATES["raw_logistic"], numbers) == "raw + ridge"
    assert title_of(CANDIDATES["field"], load_dataset("genomes")) == "5-mers + logistic"


def test_features_are_float32_tensors(motions: Dataset) -> None:
    for representation in ("raw", "components", "field"):
        features = plain_features(representation, motions)  # type: ignore[arg-type]
        assert features.train.dtype == torch.float32
        assert len(features.test) == 40
