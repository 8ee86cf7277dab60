"""Linear probe: how well a linear map reads the label off frozen features (paper, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.randomness import fold, seeded
from metamae.config.sections import ProbeConfig
from metamae.data.dataset import Array, Task, check_classes
from metamae.errors import DataError, InputError, TrainingError
from metamae.evaluation.metrics import METRICS
from metamae.progress import Reporter
from metamae.randomness import generator


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Outcome of a probe.

    Attributes:
        metric: Name of the metric.
        value: The metric on the test rows after the last epoch: the number to report.
        best: The best epoch's value, and
        best_epoch: that epoch (from 1). Chosen on test rows, so never to be reported alone.
        train_value: The metric on the training rows after the last epoch.
        predictions: Test predictions after the last epoch.
        with_ignored: The test metric with the label that the task ignores (padding) counted in;
            ``None`` where nothing is ignored.
    """

    metric: str
    value: float
    best: float
    best_epoch: int
    train_value: float
    predictions: Array
    with_ignored: float | None = None


def fit_probe(
    train_features: Tensor,
    train_labels: Array,
    test_features: Tensor,
    test_labels: Array,
    task: Task,
    config: ProbeConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    title: str = "probe",
) -> ProbeResult:
    """Fit one linear layer with Adam and report its test metric after the last epoch.

    Cross-entropy for classes (of the example, or of each of its tokens), binary cross-entropy of
    one logit for two classes, squared error for regression; batches are shuffled and the last
    partial one is dropped.

    Args:
        train_features: ``(N, D)``; token-wise ``(N, L, D)``.
        train_labels: ``(N,)``; token-wise ``(N, L)``.
        test_features: ``(M, D)`` or ``(M, L, D)``.
        test_labels: ``(M,)`` or ``(M, L)``.
        task: What to predict.
        config: Epochs, batch size, learning rate, L2 decay.
        seed: Seed of the initial weights and of the order.
        reporter: Shows progress; silent by default.
        title: Title of the bar.

    Raises:
        InputError: features and labels that do not fit each other, or are not finite.
        DataError: a class of the test rows that no training row has.

    Example:
        >>> import numpy as np, torch
        >>> from metamae.config.sections import ProbeConfig
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.probe import fit_probe
        >>> x = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
        >>> y = np.tile([0, 1], 50)
        >>> task = Task(kind="binary", metric="accuracy", classes=("low", "high"))
        >>> fit_probe(x, y, x, y, task, ProbeConfig(learning_rate=0.1, epochs=20)).value
        1.0
    """
    check_probe_data(train_features, train_labels, test_features, test_labels, task)
    if config.standardise:
        train_features, test_features = standardise(train_features, test_features)
    with seeded(fold(seed, "probe")):
        layer = nn.Linear(train_features.shape[-1], task.outputs)
    optimiser = torch.optim.Adam(
        layer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    targets = torch.from_numpy(np.array(train_labels))  # a copy: memory maps are read-only
    if task.kind != "regression":
        targets = targets.long()
    size = min(config.batch_size, len(train_features))
    values: list[float] = []
    with (reporter or Reporter(None)).stage(title, total=config.epochs, unit="epochs") as stage:
        for epoch in range(config.epochs):
            order = torch.randperm(len(targets), generator=generator(seed, "probe order", epoch))
            for start in range(0, len(order) - size + 1, size):
                index = order[start : start + size]
                loss = _loss(layer(train_features[index]), targets[index], task)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            _refuse_divergence(layer, epoch)
            predictions = predict(layer, test_features, task)
            values.append(score(task, test_labels, predictions))
            stage.advance(loss=loss.item())
    best = int(np.argmax(values))
    return ProbeResult(
        metric=task.metric,
        value=values[-1],
        best=values[best],
        best_epoch=best + 1,
        train_value=score(task, train_labels, predict(layer, train_features, task)),
        predictions=predictions,
        with_ignored=score_with_ignored(task, test_labels, predictions),
    )


def score(task: Task, truth: Array, predicted: Array) -> float:
    """The task's metric over all rows (token-wise: over all tokens), without ignored labels.

    Example:
        >>> import numpy as np
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.probe import score, score_with_ignored
        >>> kind = "token_classification"
        >>> task = Task(kind=kind, metric="accuracy", classes=("helix", "pad"), ignore=1)
        >>> truth, predicted = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
        >>> score(task, truth, predicted), score_with_ignored(task, truth, predicted)
        (0.5, 0.75)
    """
    truth, predicted = truth.reshape(-1), predicted.reshape(-1)
    if task.ignore is not None:
        kept = truth != task.ignore
        if not kept.any():
            raise DataError(
                f"expected labels other than the ignored {task.classes[task.ignore]!r}, got none"
            )
        truth, predicted = truth[kept], predicted[kept]
    return METRICS[task.metric](truth, predicted)


def score_with_ignored(task: Task, truth: Array, predicted: Array) -> float | None:
    """The metric with ignored labels counted in, or ``None`` where nothing is ignored."""
    if task.ignore is None:
        return None
    return METRICS[task.metric](truth.reshape(-1), predicted.reshape(-1))


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Scale both by the mean and deviation of the training rows (and tokens) by channel."""
    rows = train.flatten(0, -2)
    mean, scale = rows.mean(0), rows.std(0).clamp(min=1e-6)
    return (train - mean) / scale, (test - mean) / scale


def _refuse_divergence(layer: nn.Module, epoch: int) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in layer.parameters()):
        raise TrainingError(
            f"expected finite weights, the probe diverged in epoch {epoch + 1}; "
            "lower probe.learning_rate, or set probe.standardise=true"
        )


@torch.no_grad()
def predict(layer: nn.Module, features: Tensor, task: Task) -> Array:
    """Labels or numbers that a probe predicts, ``(N,)``; token-wise ``(N, L)``."""
    outputs = layer(features)
    if task.kind.endswith("classification"):
        outputs = outputs.argmax(dim=-1)
    elif task.kind == "binary":
        outputs = (outputs.squeeze(1) > 0).long()
    else:
        outputs = outputs.squeeze(1)
    predictions: Array = outputs.numpy()
    return predictions


def _loss(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    if task.kind.endswith("classification"):
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    outputs = outputs.squeeze(1)
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    return F.mse_loss(outputs, targets.to(outputs.dtype))


def check_probe_data(
    train_features: Tensor,
    train_labels: Array,
    test_features: Tensor,
    test_labels: Array,
    task: Task,
) -> None:
    """Refuse features and labels that no probe can use.

    Raises:
        InputError: shapes that do not fit each other, or values that are not finite.
        DataError: labels that are no class, or a tested class without training rows.
    """
    axes = "N, L" if task.kind == "token_classification" else "N"
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        dimensions = 3 if task.kind == "token_classification" else 2
        fits = features.ndim == dimensions and labels.shape == features.shape[:-1]
        if not fits or labels.size == 0:
            comma = "" if task.kind == "token_classification" else ","
            raise InputError(
                f"expected {name} features ({axes}, D) and labels ({axes}{comma}), got "
                f"{tuple(features.shape)} and {labels.shape}"
            )
        if not bool(torch.isfinite(features).all()) or not bool(np.isfinite(labels).all()):
            raise InputError(f"expected finite {name} features and labels, got NaN or infinity")
    if train_features.shape[1:] != test_features.shape[1:]:
        raise InputError(
            f"expected equal feature sizes, got {_size(train_features)} for training and "
            f"{_size(test_features)} for testing"
        )
    if task.kind != "regression":
        check_classes(train_labels, test_labels, task.classes, complete=task.complete)


def _size(features: Tensor) -> str:
    return " x ".join(map(str, features.shape[1:]))
