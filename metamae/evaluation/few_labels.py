"""Probes with a few labels a class, where representations differ most."""

from __future__ import annotations

import statistics

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array
from metamae.errors import DataError
from metamae.evaluation.features import Features, refuse_one_class
from metamae.evaluation.metrics import score
from metamae.evaluation.result import Evaluation
from metamae.evaluation.tuned import Scaler, fit_regularised

DRAWS = 10
"""Draws of labelled rows per probe."""
STRENGTH = 0.1
"""L2 strength of a few-label probe: fixed, for so few labels leave none to choose it by."""


def draw_labels(labels: Array, per_class: int, *, classes: int, seed: int, draw: int) -> Array:
    """Rows of one draw: ``per_class`` of every class, without replacement.

    A function of the labels, the seed and the number of the draw, the same for every method.

    Args:
        labels: ``(N,)`` class indices.
        per_class: Rows of each class.
        classes: Number of classes.
        seed: The seed.
        draw: Number of the draw.

    Raises:
        DataError: a class with fewer rows.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.few_labels import draw_labels
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> labels[draw_labels(labels, 2, classes=2, seed=0, draw=0)]
        array([0, 0, 1, 1])
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < per_class:
        raise DataError(
            f"expected at least {per_class} labelled rows of every class, class "
            f"{int(counts.argmin())} has {counts.min()}; ask for fewer labels"
        )
    random = np.random.default_rng(fold(seed, f"few labels {per_class}", draw))
    picked = [
        random.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in range(classes)
    ]
    return np.concatenate(picked)


def describe_few_labels(per_class: int) -> str:
    """The settings in words."""
    plural = "" if per_class == 1 else "s"
    return f"logistic, L2 {STRENGTH:g}, {per_class} label{plural} a class, {DRAWS} draws"


def probe_few_labels(features: Features, per_class: int, *, seed: int = 0) -> Evaluation:
    """Mean and deviation over draws of ``per_class`` labels of every class.

    Each draw is a logistic regression of fixed strength. Features are scaled by mean and deviation
    of all training rows, whose labels that does not need.

    Raises:
        DataError: a class with too few rows, or a task without classes.
    """
    task = features.task
    if task.kind not in ("classification", "binary"):
        raise DataError(
            f"expected a classification task for a few-label probe, got {task.kind}; "
            "use the published or the tuned probe"
        )
    train, labels = features.train.numpy(), features.train_labels
    refuse_one_class(labels, task, f"a probe with {per_class} labels a class")
    test = features.test.numpy().astype(np.float64)
    scaler = Scaler.of(train.astype(np.float64))
    tested, trained = [], []
    for draw in range(DRAWS):
        rows = draw_labels(labels, per_class, classes=len(task.classes), seed=seed, draw=draw)
        x, y = train[rows], labels[rows]
        probe = fit_regularised(x, y, task, STRENGTH, scaler=scaler)
        tested.append(score(task, features.test_labels, probe.predict(test)))
        trained.append(score(task, y, probe.predict(x.astype(np.float64))))
    return Evaluation(
        protocol=f"few-{per_class}",
        settings=describe_few_labels(per_class),
        metric=task.metric,
        value=statistics.mean(tested),
        spread=statistics.stdev(tested),
        draws=len(tested),
        train_value=statistics.mean(trained),
    )
