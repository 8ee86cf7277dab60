"""Metrics against values worked out by hand."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest

from metamae.data.dataset import Task
from metamae.evaluation.metrics import METRICS, accuracy, spearman, weighted_f1

TRUTH, PREDICTED = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])


def test_there_is_a_metric_for_every_task() -> None:
    named = typing.get_args(typing.get_type_hints(Task)["metric"])
    assert set(METRICS) == set(named)


def test_accuracy_is_the_share_of_equal_labels() -> None:
    assert accuracy(TRUTH, PREDICTED) == pytest.approx(4 / 6)
    assert accuracy(TRUTH, TRUTH) == 1.0
    assert accuracy(TRUTH, TRUTH + 1) == 0.0


def test_weighted_f1() -> None:
    """Class 0: P 1, R 2/3, F 4/5. Class 1: P 1/2, R 1/2, F 1/2. Class 2: P 1/2, R 1, F 2/3."""
    expected = 3 / 6 * 4 / 5 + 2 / 6 * 1 / 2 + 1 / 6 * 2 / 3
    assert weighted_f1(TRUTH, PREDICTED) == pytest.approx(expected)
    assert weighted_f1(TRUTH, TRUTH) == 1.0
    order = np.array([5, 3, 0, 1, 4, 2])
    assert weighted_f1(TRUTH[order], PREDICTED[order]) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_weighted_f1_of_a_constant_prediction(share: float) -> None:
    """The share of the class times its F1, 2 s / (1 + s); other classes count 0, without a warning.

    A WaferMap predictor of "none" is such a one.
    """
    truth = np.repeat([0, 1], [round(100 * share), round(100 * (1 - share))])
    expected = share * 2 * share / (1 + share)
    assert weighted_f1(truth, np.zeros(100, int)) == pytest.approx(expected)
    assert weighted_f1(truth, np.full(100, 7)) == 0.0


def test_spearman_without_ties() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 * 4 / 120."""
    truth = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    predicted = np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert spearman(truth, predicted) == pytest.approx(0.8)
    assert spearman(truth, -predicted) == pytest.approx(-0.8)
    assert spearman(truth, np.exp(predicted)) == pytest.approx(0.8)  # ranks only
    assert spearman(truth, truth) == pytest.approx(1.0)


def test_spearman_with_ties() -> None:
    """Tied values share their mean rank: ranks 1, 2.5, 2.5, 4 give 4.5 / sqrt(5 * 4.5)."""
    truth, predicted = np.array([1, 2, 3, 4]), np.array([0.1, 0.2, 0.2, 0.9])
    assert spearman(truth, predicted) == pytest.approx(4.5 / math.sqrt(22.5))


@pytest.mark.parametrize("side", [0, 1])
def test_spearman_of_a_constant_is_0_without_a_warning(side: int) -> None:
    sides = [np.arange(4.0), np.arange(4.0)]
    sides[side] = np.full(4, 2.5)
    assert spearman(*sides) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_plain_floats(name: str) -> None:
    """Fit for JSON."""
    assert type(METRICS[name](TRUTH, PREDICTED)) is float
