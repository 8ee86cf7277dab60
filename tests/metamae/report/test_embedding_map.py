"""The map of features: its plane against an eigendecomposition, and what is drawn on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from metamae.data.dataset import Task
from metamae.errors import DataError
from metamae.evaluation.features import Features
from metamae.report.embedding_map import draw_map, groups_of, principal_plane

CLASSES = Task(kind="classification", metric="accuracy", classes=("a", "b", "never"))


def features_of(rows: int = 60, task: Task = CLASSES) -> Features:
    """Two clouds, far apart."""
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    test = random.normal(size=(rows, 5)) + 8 * labels[:, None]
    tensor = torch.from_numpy(test)
    return Features(task=task, train=tensor, train_labels=labels, test=tensor, test_labels=labels)


def test_the_plane_is_that_of_the_largest_eigenvalues() -> None:
    rows = np.random.default_rng(1).normal(size=(40, 6)) * [5, 1, 3, 1, 1, 1] + 7
    points, shares = principal_plane(rows)
    covariance = np.cov(rows.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum())
    for axis in range(2):
        vector = vectors[:, -1 - axis]
        vector = vector * np.sign(vector[np.abs(vector).argmax()])
        np.testing.assert_allclose(points[:, axis], (rows - rows.mean(0)) @ vector, atol=1e-9)


def test_classes_have_groups_and_numbers_do_not() -> None:
    rows = np.array([0, 1, 3, 4])
    groups = {name: chosen.tolist() for name, chosen in groups_of(features_of(), rows).items()}
    assert groups == {"a": [0, 3], "b": [1, 2]}
    number = Task(kind="regression", metric="spearman", classes=())
    assert list(groups_of(features_of(task=number), rows)) == [""]


def test_two_clouds_are_two_colours_apart(tmp_path: Path) -> None:
    draw_map(features_of(), tmp_path / "map.png")
    image = imread(tmp_path / "map.png")[..., :3]
    blue = image[..., 2] - image[..., 0] > 0.3
    orange = image[..., 0] - image[..., 2] > 0.3
    middle = image.shape[1] // 2
    sides = [np.median(np.nonzero(mask)[1]) < middle for mask in (blue, orange)]
    assert sides[0] != sides[1]
    again = tmp_path / "again.png"
    draw_map(features_of(), again)
    assert again.read_bytes() == (tmp_path / "map.png").read_bytes()


def test_two_rows_make_no_map(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected three rows or more of two features or more"):
        draw_map(features_of(rows=2), tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
