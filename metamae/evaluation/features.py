"""Frozen features: unmasked examples through the encoder, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metamae.data.dataset import Array, Dataset, Partition, Task
from metamae.errors import TrainingError
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


def compute_features(
    method: Method[Any], dataset: Dataset, *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features of the training and the test rows, token-wise where the task is."""
    tokens = dataset.need_task().kind == "token_classification"
    train, test = (
        extract_features(method, dataset.need(part), tokens=tokens, device=device)
        for part in ("train", "test")
    )
    return train, test
