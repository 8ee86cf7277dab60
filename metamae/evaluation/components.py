"""Principal components of raw inputs: the linear answer to what unlabelled rows can teach."""

from __future__ import annotations

import numpy as np
import torch

from metamae.data.dataset import Array, Dataset, Partition, Selected
from metamae.evaluation.features import Features
from metamae.evaluation.raw import raw_inputs

VARIANCE = 0.9
MOST_COMPONENTS = 64
MOST_ROWS = 5000
"""Unlabelled rows that components are computed from, spread evenly where there are more."""


def count_components(ratios: Array) -> int:
    """Components to keep: as few as have 90 % of the variance, from 2 to 64.

    Args:
        ratios: Share of the variance of every component, largest first.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.components import count_components
        >>> count_components(np.array([0.5, 0.3, 0.15, 0.05]))
        3
    """
    needed = int(np.searchsorted(np.cumsum(ratios), VARIANCE - 1e-9)) + 1
    return max(min(2, len(ratios)), min(needed, MOST_COMPONENTS, len(ratios)))


def component_features(dataset: Dataset) -> Features:
    """Components of the labelled rows, in the place of an encoder's features.

    Inputs are standardised by column, components computed without labels, on the pretraining rows
    where there are some. They are divided by one number, so that those with more variance stay
    larger: a probe that standardises each would undo what they are for.
    """
    unlabelled = _sample(dataset.pretrain or dataset.need("train"))
    values = raw_inputs(unlabelled).astype(np.float64)
    scale = values.std(0)
    mean, scale = values.mean(0), np.where(scale > 1e-6, scale, np.inf)
    values = (values - mean) / scale
    most = min(MOST_COMPONENTS, *values.shape)
    from sklearn.decomposition import PCA  # takes seconds: commands start without it

    model = PCA(most, svd_solver="full" if min(values.shape) <= 512 else "randomized")
    model.set_params(random_state=0).fit(values)
    count = count_components(model.explained_variance_ratio_)
    unit = float(np.sqrt(model.explained_variance_[:count].mean())) or 1.0

    def project(data: Partition) -> torch.Tensor:
        scaled = (raw_inputs(data) - mean) / scale
        return torch.from_numpy((model.transform(scaled)[:, :count] / unit).astype(np.float32))

    return Features.of(dataset, project(dataset.need("train")), project(dataset.need("test")))


def _sample(data: Partition) -> Partition:
    if len(data) <= MOST_ROWS:
        return data
    index = np.linspace(0, len(data) - 1, MOST_ROWS).astype(np.int64)
    arrays = {name: Selected(array, index) for name, array in data.arrays.items()}
    return Partition(arrays=arrays, inputs=data.inputs, scaling=data.scaling)
