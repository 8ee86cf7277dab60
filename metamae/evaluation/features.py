"""Frozen features: unmasked examples through the encoder, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamae.data.dataset import Array, Dataset, Partition, Task, check_classes
from metamae.errors import DataError, InputError, TrainingError
from metamae.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features and labels of the training and the test rows of one data set.

    Attributes:
        task: What to predict.
        train: ``(N, D)``; token-wise ``(N, L, D)``.
        train_labels: ``(N,)`` or ``(N, L)``.
        test: ``(M, D)`` or ``(M, L, D)``.
        test_labels: ``(M,)`` or ``(M, L)``.
        groups: Group of every training row, for validation cuts.
    """

    task: Task
    train: Tensor
    train_labels: Array
    test: Tensor
    test_labels: Array
    groups: Array | None = None

    @classmethod
    def of(cls, dataset: Dataset, train: Tensor, test: Tensor) -> Features:
        """Join features with the labels of the data set they were computed from."""
        train_rows, test_rows = dataset.need("train"), dataset.need("test")
        assert train_rows.labels is not None
        assert test_rows.labels is not None
        return cls(
            task=dataset.need_task(),
            train=train,
            train_labels=train_rows.labels,
            test=test,
            test_labels=test_rows.labels,
            groups=train_rows.groups,
        )


def check_features(features: Features) -> None:
    """Refuse features and labels that no probe can use.

    Raises:
        InputError: shapes that do not fit each other, or values that are not finite.
        DataError: labels that are no class, or a tested class without training rows.
    """
    task = features.task
    axes = ("N", "L") if task.kind == "token_classification" else ("N",)
    for name, rows, labels in (
        ("train", features.train, features.train_labels),
        ("test", features.test, features.test_labels),
    ):
        _check_kinds(name, rows, labels)
        fits = rows.ndim == len(axes) + 1 and labels.shape == rows.shape[:-1]
        if not fits or labels.size == 0:
            comma = "," if len(axes) == 1 else ""
            raise InputError(
                f"expected {name} features ({', '.join(axes)}, D) and labels "
                f"({', '.join(axes)}{comma}), got {tuple(rows.shape)} and {labels.shape}"
            )
        if not bool(torch.isfinite(rows).all()) or not bool(np.isfinite(labels).all()):
            raise InputError(f"expected finite {name} features and labels, got NaN or infinity")
    if len(features.train) < 2:
        raise InputError("expected two training rows or more to fit a probe, got 1; add rows")
    if features.train.shape[1:] != features.test.shape[1:]:
        raise InputError(
            f"expected equal feature sizes, got {_size(features.train)} for training and "
            f"{_size(features.test)} for testing"
        )
    if task.kind != "regression":
        check_classes(
            features.train_labels, features.test_labels, task.classes, complete=task.complete
        )


def _check_kinds(name: str, rows: object, labels: object) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(f"expected {name} features as a floating-point tensor, got {kind}")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "fiub":
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise InputError(
            f"expected {name} labels as a NumPy array of numbers, got {kind}; number the classes "
            "in the order of the task's classes"
        )


def refuse_one_class(labels: Array, task: Task, protocol: str) -> None:
    """Raise ``DataError`` where a classifier would have nothing to tell apart."""
    if task.kind != "regression" and len(np.unique(labels)) < 2:
        raise DataError(
            f"expected training rows of two classes or more for {protocol}, got one class only; "
            "add rows of others"
        )


def _size(features: Tensor) -> str:
    return " x ".join(map(str, features.shape[1:]))


@torch.no_grad()
def extract_features(
    method: Method[Any],
    data: Partition,
    *,
    tokens: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """Features of all examples, float32 ``(N, D)`` on the CPU, or ``(N, L, D)`` of their tokens.

    The method's training mode is restored afterwards.

    Args:
        method: Any method; its network gives the features of tokens.
        data: The examples.
        tokens: Features of every token, for token-wise tasks.
        device: Where the method is.
        batch_size: Examples at once.

    Raises:
        InputError, DataError: examples that do not fit the method's inputs.
        TrainingError: features that are not finite, naming the first example.
    """
    compute = method.network.token_features if tokens else method.features
    mode = method.training
    method.eval()
    try:
        parts = [
            compute({name: x.to(device) for name, x in batch.items()}).float().cpu()
            for batch in _batches(data, batch_size)
        ]
    finally:
        method.train(mode)
    features = torch.cat(parts)
    finite = torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise TrainingError(
            f"expected finite features, got NaN or infinity from example {first} on; the weights "
            "have diverged: lower training.learning_rate"
        )
    return features


def _batches(data: Partition, size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(data), size):
        yield data.batch(slice(start, start + size))


def all_token_features(
    method: Method[Any], dataset: Dataset, *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features of every token, ``(N, L, D)``: what the attentive probe reads."""
    train, test = (
        extract_features(method, dataset.need(part), tokens=True, device=device)
        for part in ("train", "test")
    )
    return train, test


def compute_features(
    method: Method[Any], dataset: Dataset, *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Mean features of the training and the test rows; all of them where the task is of tokens."""
    tokens = dataset.need_task().kind == "token_classification"
    train, test = (
        extract_features(method, dataset.need(part), tokens=tokens, device=device)
        for part in ("train", "test")
    )
    return train, test
