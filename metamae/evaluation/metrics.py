"""The three metrics of the benchmark, each over the whole test set at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score

Array = NDArray[Any]


def accuracy(truth: Array, predicted: Array) -> float:
    """Share of equal labels."""
    return float(accuracy_score(truth, predicted))


def weighted_f1(truth: Array, predicted: Array) -> float:
    """F1 of each class, weighted by its share of the true labels; 0 for a class never predicted."""
    return float(f1_score(truth, predicted, average="weighted", zero_division=0.0))


def spearman(truth: Array, predicted: Array) -> float:
    """Spearman's rank correlation; 0 when either side is constant, where it is undefined."""
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(spearmanr(truth, predicted).statistic)


METRICS = {"accuracy": accuracy, "weighted_f1": weighted_f1, "spearman": spearman}
