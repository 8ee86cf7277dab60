"""Inputs as they are: flat vectors of scaled values, which any encoder has to be better than."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.data.dataset import Array, Dataset, Partition
from metamae.errors import DataError
from metamae.evaluation.features import Features
from metamae.inputs import InputSpec, Tabular, Tokens

MOST_VALUES = 224 * 224
"""Values of one example, those of a whole spectrogram, that models on raw inputs still take."""

ROWS_AT_ONCE = 1024


def raw_inputs(data: Partition) -> Array:
    """Every example as one vector, float32 ``(N, D)``.

    Real values are scaled as the encoders see them; a symbol becomes as many zeros and a one as
    there are symbols. Where cells may be missing, a cell is its value and whether it is there; what
    is not there is zero, the mean. Several inputs lie side by side.

    Args:
        data: The examples.

    Raises:
        DataError: examples too large for it, or unusable ones.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.evaluation.raw import raw_inputs
        >>> raw_inputs(load_dataset("tabular").need("test")).shape[1]
        10
    """
    size = sum(_size(spec, data) for spec in data.inputs)
    if size > MOST_VALUES:
        raise DataError(
            f"expected up to {MOST_VALUES} values an example for models on raw inputs, got {size}; "
            "make the inputs smaller, or leave these models out"
        )
    parts = [
        _flatten(data, slice(start, start + ROWS_AT_ONCE))
        for start in range(0, len(data), ROWS_AT_ONCE)
    ]
    vectors: Array = torch.cat(parts).numpy()
    return vectors


def _size(spec: InputSpec, data: Partition) -> int:
    per_row = int(np.prod(np.shape(data.arrays[spec.name][0:1])[1:]))
    return per_row * (spec.vocabulary if isinstance(spec, Tokens) else 1)


def _flatten(data: Partition, rows: slice) -> Tensor:
    batch = data.batch(rows)
    return torch.cat([_vector(spec, batch[spec.name]) for spec in data.inputs], dim=1)


def _vector(spec: InputSpec, x: Tensor) -> Tensor:
    if isinstance(spec, Tokens):
        x = F.one_hot(spec.patchify(x), spec.vocabulary)  # (B, L) -> (B, L, vocabulary)
    elif isinstance(spec, Tabular) and spec.gaps:
        x = spec.patchify(x)  # (B, columns) -> (B, columns, 2)
    return x.float().flatten(1)


def raw_features(dataset: Dataset) -> Features:
    """Raw inputs of the labelled rows, in the place of an encoder's features."""
    train, test = (torch.from_numpy(raw_inputs(dataset.need(part))) for part in ("train", "test"))
    return Features.of(dataset, train, test)
