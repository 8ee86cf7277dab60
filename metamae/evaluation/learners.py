"""What learns from a few labels, on features or on raw inputs: linear, trees, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from metamae.data.dataset import Array, Task
from metamae.errors import DataError
from metamae.evaluation.few_labels import STRENGTH
from metamae.evaluation.neighbours import NEIGHBOURS, predict_by_neighbours
from metamae.evaluation.tuned import Scaler, fit_regularised, fit_tuned

TUNED_FROM = 20
"""Labels a class from which on there are enough to choose the L2 strength by."""

STRENGTHS = (1.0, 0.1, 0.01, 1e-3)
"""L2 strengths to choose from, strongest first."""

LEAF = 20
"""Least rows of a leaf of boosted trees; fewer where there are few rows."""

COLUMNS = 256
"""Columns that a split of boosted trees chooses among."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Labelled rows to learn from, and rows to predict.

    Attributes:
        task: What to predict.
        features: ``(n, D)`` of the labelled rows.
        labels: ``(n,)``.
        groups: ``(n,)`` groups of the labelled rows, for cuts among them.
        judged: ``(m, D)`` of the rows to predict.
        scaler: Scales features, by statistics of all training rows, which takes no labels.
        per_class: Labelled rows a class.
        seed: Seed of what is random in learning.
    """

    task: Task
    features: Array
    labels: Array
    judged: Array
    scaler: Scaler
    per_class: float
    groups: Array | None = None
    seed: int = 0


def learn_linear(lesson: Lesson) -> Array:
    """Logistic regression, or ridge regression of numbers, on scaled features.

    The L2 strength is fixed while labels are few, and chosen on a cut of the labelled rows from
    :data:`TUNED_FROM` labels a class on.
    """
    features, judged = span(lesson.scaler(lesson.features), lesson.scaler(lesson.judged))
    width = features.shape[1]
    scaled, task, labels = Scaler(np.zeros(width), np.ones(width)), lesson.task, lesson.labels
    if lesson.per_class >= TUNED_FROM:
        with suppress(DataError):  # no group can be spared for a cut
            return fit_tuned(
                features,
                labels,
                task,
                groups=lesson.groups,
                scaler=scaled,
                strengths=STRENGTHS,
                seed=lesson.seed,
            ).predict(judged)
    return fit_regularised(features, labels, task, STRENGTH, scaler=scaled).predict(judged)


def span(features: Array, judged: Array) -> tuple[Array, Array]:
    """The same rows in as many columns as there are labelled rows, where there were more.

    A linear model with an L2 term lies in the span of the rows that it is fitted on, so that it is
    the same in an orthonormal basis of it, and found much faster.

    Args:
        features: ``(n, D)`` of the labelled rows.
        judged: ``(m, D)``.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.learners import span
        >>> small, _ = span(np.eye(2, 5), np.ones((3, 5)))
        >>> small.shape, np.allclose(small @ small.T, np.eye(2))
        ((2, 2), True)
    """
    if features.shape[1] <= len(features):
        return features, judged
    basis, _ = np.linalg.qr(features.T)  # (D, n)
    return features @ basis, judged @ basis


def learn_trees(lesson: Lesson) -> Array:
    """Gradient boosting of trees, scikit-learn's with its own settings, but for two.

    A leaf has at least a tenth of the rows where that is less than 20, without which nothing would
    ever be split that has few labels; and a split looks at 256 columns drawn anew where there are
    more, for time.
    """
    regression = lesson.task.kind == "regression"
    from sklearn import ensemble  # takes seconds: commands start without it

    name = "HistGradientBoosting" + ("Regressor" if regression else "Classifier")
    kind = getattr(ensemble, name)
    model = kind(
        min_samples_leaf=max(1, min(LEAF, len(lesson.labels) // 10)),
        max_features=min(1.0, COLUMNS / lesson.features.shape[1]),
        early_stopping=False,
        random_state=lesson.seed % 2**32,
    )
    predictions: Array = model.fit(lesson.features, lesson.labels).predict(lesson.judged)
    return predictions


def learn_neighbours(lesson: Lesson) -> Array:
    """The nearest labelled rows in cosine similarity vote: as many as a class has, up to 20."""
    train, judged = (
        torch.from_numpy(lesson.scaler(x).astype(np.float32))
        for x in (lesson.features, lesson.judged)
    )
    count = max(1, min(NEIGHBOURS, int(lesson.per_class)))
    if lesson.task.kind == "regression":
        count = max(1, min(NEIGHBOURS, len(lesson.labels) // 4))
    return predict_by_neighbours(train, lesson.labels, judged, lesson.task, neighbours=count)


LEARNERS: Mapping[str, Callable[[Lesson], Array]] = MappingProxyType(
    {"linear": learn_linear, "trees": learn_trees, "neighbours": learn_neighbours}
)
"""Learners by name."""
