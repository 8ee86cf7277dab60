"""Frozen features: unmasked examples through the encoder, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metamae.data.dataset import Partition
from metamae.errors import TrainingError
from metamae.method import Method


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
