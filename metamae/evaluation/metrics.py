"""The three metrics of the benchmark, each over the whole test set at once, and a task's score."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array, Dataset, Task
from metamae.errors import DataError


def accuracy(truth: Array, predicted: Array) -> float:
    """Share of equal labels."""
    from sklearn.metrics import accuracy_score  # takes seconds: commands start without it

    return float(accuracy_score(truth, predicted))


def weighted_f1(truth: Array, predicted: Array) -> float:
    """F1 of each class, weighted by its share of the true labels; 0 for a class never predicted."""
    from sklearn.metrics import f1_score  # as above

    return float(f1_score(truth, predicted, average="weighted", zero_division=0.0))


def spearman(truth: Array, predicted: Array) -> float:
    """Spearman's rank correlation; 0 when either side is constant, where it is undefined."""
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return 0.0
    from scipy.stats import spearmanr  # as above

    return float(spearmanr(truth, predicted).statistic)


METRICS = {"accuracy": accuracy, "weighted_f1": weighted_f1, "spearman": spearman}


def commonest_share(dataset: Dataset) -> float | None:
    """Accuracy on test rows of always answering the commonest class of the training rows.

    ``None`` for another metric than accuracy.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.evaluation.metrics import commonest_share
        >>> round(commonest_share(load_dataset("tabular")), 3)
        0.665
    """
    if dataset.need_task().metric != "accuracy":
        return None
    train, test = (dataset.need(part).labels for part in ("train", "test"))
    assert train is not None
    assert test is not None
    return float(np.mean(np.asarray(test) == np.bincount(np.asarray(train)).argmax()))


def score(task: Task, truth: Array, predicted: Array) -> float:
    """The task's metric over all rows (token-wise: over all tokens), without ignored labels.

    Example:
        >>> import numpy as np
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.metrics import score, score_with_ignored
        >>> kind = "token_classification"
        >>> task = Task(kind=kind, metric="accuracy", classes=("helix", "pad"), ignore=1)
        >>> truth, predicted = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
        >>> score(task, truth, predicted), score_with_ignored(task, truth, predicted)
        (0.5, {'with_ignored': 0.75})
    """
    truth, predicted = truth.reshape(-1), predicted.reshape(-1)
    if task.ignore is not None:
        counted = truth != task.ignore
        if not counted.any():
            raise DataError(
                f"expected labels other than the ignored {task.classes[task.ignore]!r}, got none"
            )
        truth, predicted = truth[counted], predicted[counted]
    return METRICS[task.metric](truth, predicted)


def score_with_ignored(task: Task, truth: Array, predicted: Array) -> dict[str, float]:
    """The metric with ignored labels counted in, by name; nothing where nothing is ignored."""
    if task.ignore is None:
        return {}
    return {"with_ignored": METRICS[task.metric](truth.reshape(-1), predicted.reshape(-1))}
