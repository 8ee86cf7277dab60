"""Principal components, of raw inputs and of an encoder's tokens.

Of raw inputs they are the linear answer to what unlabelled rows can teach.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from metamae.data.dataset import Array, Dataset, Partition, Selected
from metamae.evaluation.features import Features, extract_features
from metamae.evaluation.raw import raw_inputs
from metamae.methods.method import Method

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


class Components:
    """Principal components of standardised columns, computed without labels.

    They are divided by one number, so that those with more variance stay larger: a probe that
    standardises each would undo what they are for.

    Args:
        values: ``(N, D)`` rows to compute them from.
        all_of_them: Keep up to 64, however little variance the last ones have.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.components import Components
        >>> line = np.outer(np.linspace(-1, 1, 50), np.ones(3))
        >>> Components(line)(line[:2]).shape
        (2, 2)
    """

    def __init__(self, values: Array, *, all_of_them: bool = False) -> None:
        """See the class."""
        from sklearn.decomposition import PCA  # takes seconds: commands start without it

        scale = values.std(0)
        self.mean, self.scale = values.mean(0), np.where(scale > 1e-6, scale, np.inf)
        scaled = (values - self.mean) / self.scale
        most = min(MOST_COMPONENTS, *scaled.shape)
        self.model = PCA(most, svd_solver="full" if min(scaled.shape) <= 512 else "randomized")
        self.model.set_params(random_state=0).fit(scaled)
        ratios = self.model.explained_variance_ratio_
        # One without variance is a direction that no row told anything of.
        there = max(1, int((ratios > 1e-9).sum()))
        self.count = there if all_of_them else count_components(ratios)
        self.unit = float(np.sqrt(self.model.explained_variance_[: self.count].mean())) or 1.0

    def __call__(self, values: Array) -> Array:
        """Components ``(N, count)`` of rows."""
        scaled = (values - self.mean) / self.scale
        projected = self.model.transform(scaled)[:, : self.count] / self.unit
        return np.asarray(projected, np.float32)


def component_features(dataset: Dataset) -> Features:
    """Components of the raw inputs of the labelled rows, in the place of an encoder's features.

    They are computed on the pretraining rows where there are some.
    """
    unlabelled = sample(dataset.pretrain or dataset.need("train"))
    components = Components(raw_inputs(unlabelled).astype(np.float64))

    def project(data: Partition) -> torch.Tensor:
        return torch.from_numpy(components(raw_inputs(data)))

    return Features.of(dataset, project(dataset.need("train")), project(dataset.need("test")))


def token_components(
    method: Method[Any], dataset: Dataset, *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Components of an encoder's features of all tokens side by side, of training and test rows.

    Their mean, the features of the paper, forgets which token says what; where a token's place
    means something, as columns of a table do, a probe learns more from them one by one. Up to 64
    components are kept: classes may differ where features vary little.

    Args:
        method: Any method.
        dataset: The data set.
        device: Where the method is.
    """
    unlabelled = sample(dataset.pretrain or dataset.need("train"))
    side_by_side = partial(_tokens, method, device=device)
    components = Components(side_by_side(unlabelled).astype(np.float64), all_of_them=True)
    train, test = (
        torch.cat([torch.from_numpy(components(side_by_side(rows))) for rows in _runs(part)])
        for part in (dataset.need("train"), dataset.need("test"))
    )
    return train, test


def joined_components(
    method: Method[Any], dataset: Dataset, *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`token_components` beside components of the raw inputs, of training and test rows.

    What an encoder learned is seldom all that its inputs tell; a probe on both loses nothing. Both
    blocks have the same variance in all, so that neither outweighs the other by its width.

    Args:
        method: Any method.
        dataset: The data set.
        device: Where the method is.
    """
    tokens = token_components(method, dataset, device=device)
    unlabelled = sample(dataset.pretrain or dataset.need("train"))
    components = Components(raw_inputs(unlabelled).astype(np.float64), all_of_them=True)
    parts = (dataset.need("train"), dataset.need("test"))
    inputs = [torch.from_numpy(components(raw_inputs(part))) for part in parts]
    train, test = (
        torch.cat([_sized(block) for block in blocks], dim=1)
        for blocks in zip(tokens, inputs, strict=True)
    )
    return train, test


def _sized(block: torch.Tensor) -> torch.Tensor:
    """With half the variance that as many components as are kept at most have."""
    return block * float(np.sqrt(MOST_COMPONENTS / 2 / block.shape[1]))


def _tokens(method: Method[Any], rows: Partition, *, device: torch.device | str) -> Array:
    features = extract_features(method, rows, tokens=True, device=device)
    return features.flatten(1).numpy()


def _runs(data: Partition) -> Iterator[Partition]:
    """A thousand rows after the other: features of all tokens are many numbers."""
    for start in range(0, len(data), 1000):
        yield _rows(data, np.arange(start, min(start + 1000, len(data))))


def sample(data: Partition) -> Partition:
    """Up to 5000 of the rows, spread evenly."""
    if len(data) <= MOST_ROWS:
        return data
    return _rows(data, np.linspace(0, len(data) - 1, MOST_ROWS).astype(np.int64))


def _rows(data: Partition, index: Array) -> Partition:
    arrays = {name: Selected(array, index) for name, array in data.arrays.items()}
    return Partition(arrays=arrays, inputs=data.inputs, scaling=data.scaling)
