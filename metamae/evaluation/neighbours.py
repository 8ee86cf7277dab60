"""Nearest neighbours on frozen features: no training, no setting to tune."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.data.dataset import Array, Task
from metamae.errors import DataError
from metamae.evaluation.features import Features
from metamae.evaluation.metrics import score
from metamae.evaluation.result import Evaluation

NEIGHBOURS = 20
"""Neighbours that vote; all training rows where there are fewer."""


def predict_by_neighbours(
    train_features: Tensor,
    train_labels: Array,
    test_features: Tensor,
    task: Task,
    *,
    neighbours: int = NEIGHBOURS,
) -> Array:
    r"""Predict by the nearest training rows in cosine similarity.

    Features are centred by the training mean first, for all features of one encoder share a large
    common part. A neighbour votes with its similarity plus one,

    .. math:: s(x, x_i) = 1 + \cos(x - \mu, x_i - \mu) \in [0, 2];

    regression takes the mean weighted likewise.

    Args:
        train_features: ``(N, D)``.
        train_labels: ``(N,)``.
        test_features: ``(M, D)``.
        task: What to predict.
        neighbours: Their number.

    Returns:
        Predictions ``(M,)``.

    Example:
        >>> import numpy as np, torch
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.neighbours import predict_by_neighbours
        >>> train = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
        >>> task = Task(kind="binary", metric="accuracy", classes=("right", "left"))
        >>> labels = np.array([0, 0, 1, 1])
        >>> predict_by_neighbours(train, labels, torch.tensor([[5.0, 1.0]]), task, neighbours=2)
        array([0])
    """
    mean = train_features.mean(0)
    train = F.normalize(train_features - mean, dim=1)
    count = min(neighbours, len(train))
    labels = torch.from_numpy(train_labels.copy())
    parts = []
    for part in (test_features - mean).split(1024):
        similarity, index = (F.normalize(part, dim=1) @ train.T).topk(count, dim=1)
        weight = (1 + similarity).clamp(min=1e-6)
        if task.kind == "regression":
            parts.append((weight * labels[index]).sum(1) / weight.sum(1))
        else:
            votes = torch.zeros(len(part), len(task.classes))
            parts.append(votes.scatter_add_(1, labels[index].long(), weight).argmax(1))
    predictions: Array = torch.cat(parts).numpy()
    return predictions


def describe_neighbours() -> str:
    """The settings in words."""
    return f"{NEIGHBOURS} nearest neighbours, cosine of centred features"


def probe_neighbours(features: Features) -> Evaluation:
    """Predict the test rows by their nearest training rows.

    Raises:
        DataError: a token-wise task.
    """
    task = features.task
    if task.kind == "token_classification":
        raise DataError(
            "expected one label an example for nearest neighbours, got a token-wise task; "
            "use the published or the tuned probe"
        )
    on_test, on_train = (
        predict_by_neighbours(features.train, features.train_labels, rows, task)
        for rows in (features.test, features.train)
    )
    return Evaluation(
        protocol="knn",
        settings=describe_neighbours(),
        metric=task.metric,
        value=score(task, features.test_labels, on_test),
        train_value=score(task, features.train_labels, on_train),
        predictions=on_test,
    )
