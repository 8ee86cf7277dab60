"""Encoders on other data: which inputs they take, and their features, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from metamae.arguments import as_path
from metamae.data.dataset import Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import CheckpointError
from metamae.evaluation.components import joined_components, token_components
from metamae.evaluation.features import Features, all_token_features, compute_features
from metamae.evaluation.inner_gradients import joined_gradients
from metamae.training.checkpoint import read_intact, save_tensors
from metamae.training.run_folder import CHECKPOINT, load_method

Pooling = Literal["mean", "tokens", "joined", "gradients", "all"]
"""What becomes of the features of tokens: their mean, as in the paper; principal components of all
of them side by side (:func:`~metamae.evaluation.components.token_components`); these beside
components of the inputs (:func:`~metamae.evaluation.components.joined_components`); their mean
beside inner gradients (:func:`~metamae.evaluation.inner_gradients.joined_gradients`); or all."""

POOLINGS: tuple[Pooling, ...] = ("mean", "tokens", "joined")
"""What a comparison tries."""

FEATURES: Mapping[Pooling, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {
        "mean": compute_features,
        "tokens": token_components,
        "joined": joined_components,
        "gradients": joined_gradients,
        "all": all_token_features,
    }
)
"""What computes each, of the training and the test rows."""


def run_features(
    run_dir: Path,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    pooling: Pooling = "mean",
) -> Features:
    """Features of a run's checkpoint on a data set, kept in a file beside the checkpoint.

    The file is valid for the digests of checkpoint and data it was made from, and is made again
    when either differs or when it cannot be read.

    Args:
        run_dir: Folder of a pretraining run.
        dataset: The data set to compute features of; its own scaling is used.
        device: Where to compute.
        pooling: What becomes of the features of tokens; token-wise tasks keep them all.

    Raises:
        CheckpointError: a missing or damaged checkpoint, or weights that do not fit the inputs.
        ConfigError: gradients of a method without a decoder, or for a task of tokens.
    """
    run_dir = as_path(run_dir, "a run folder")
    kind = "" if pooling == "mean" else f"-{pooling}"
    checkpoint, path = run_dir / CHECKPOINT, run_dir / f"features-{dataset.name}{kind}.pt"
    key = _cache_key(checkpoint, dataset)
    parts = _read_cache(path, key)
    if parts is None:
        method = load_method(checkpoint, dataset.inputs, device)
        train, test = FEATURES[pooling](method, dataset, device=str(device))
        parts = {"train": train, "test": test}
        save_tensors(path, {"key": key, **parts})
    return Features.of(dataset, parts["train"], parts["test"])


def _cache_key(checkpoint: Path, dataset: Dataset) -> dict[str, Any]:
    if not checkpoint.is_file():
        raise CheckpointError(
            f"expected a checkpoint at {checkpoint}, found none; check the path, or pretrain first"
        )
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": digest,
        "dataset": dataset.name,
        "data": hashlib.sha256(repr(sorted(dataset.card.items())).encode()).hexdigest(),
        "rows": [len(dataset.need("train")), len(dataset.need("test"))],
        "inputs": repr(dataset.inputs),
        "task": dataset.need_task().kind,
        "fingerprint": fingerprint(dataset),
    }


def _read_cache(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        cache = read_intact(path, "cpu")
        if not isinstance(cache, dict) or cache.keys() != {"key", "train", "test"}:
            return None
        made_for = cache.pop("key")  # of an earlier revision without a fingerprint: made again
        fits = repr(made_for) == repr(key) and _are_features(cache, key["rows"])
    except (CheckpointError, RecursionError):  # a damaged cache is no loss
        return None
    return cache if fits else None


def _are_features(parts: dict[str, Any], rows: list[int]) -> bool:
    """Whether both parts are tensors of numbers, as many rows as there are examples."""
    return all(
        isinstance(part, torch.Tensor) and part.is_floating_point() and part.shape[:1] == (count,)
        for part, count in zip((parts["train"], parts["test"]), rows, strict=True)
    )
