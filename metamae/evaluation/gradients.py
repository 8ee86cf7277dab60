"""Histograms of oriented gradients: what was computed by hand where images are classified."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array

ORIENTATIONS = 9
CELLS = 4
"""Cells along each side of an image, fewer where they would be smaller than two pixels."""


def gradient_histograms(images: Array) -> Array:
    """How strongly the image changes in which direction, cell by cell; and means of channels.

    The gradient of a pixel is that of the channel where it is largest. Histograms are divided by
    their norm over the image; mean and deviation of every channel are added.

    Args:
        images: ``(N, C, H, W)``.

    Returns:
        ``(N, D)``, float32.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.gradients import gradient_histograms
        >>> gradient_histograms(np.zeros((2, 3, 8, 8))).shape
        (2, 150)
    """
    images = np.asarray(images, np.float32)
    height, width = images.shape[-2:]
    down, across = (
        np.gradient(images, axis=axis) if images.shape[axis] > 1 else 0 * images
        for axis in (-2, -1)
    )
    strength = np.hypot(down, across)
    strongest = strength.argmax(1)[:, None]
    strength, down, across = (
        np.take_along_axis(x, strongest, axis=1)[:, 0] for x in (strength, down, across)
    )
    angle = np.mod(np.arctan2(down, across), np.pi) / np.pi  # direction without sign
    kind = np.minimum((angle * ORIENTATIONS).astype(int), ORIENTATIONS - 1)
    cell = _cells(height)[:, None] * (_cells(width).max() + 1) + _cells(width)[None]
    bins = (cell * ORIENTATIONS)[None] + kind
    histograms = np.zeros((len(images), (cell.max() + 1) * ORIENTATIONS), np.float32)
    np.add.at(histograms, (np.arange(len(images))[:, None, None], bins), strength)
    norm = np.linalg.norm(histograms, axis=1, keepdims=True)
    features: Array = np.concatenate(
        [histograms / np.maximum(norm, 1e-6), images.mean((2, 3)), images.std((2, 3))], axis=1
    )
    return features


def _cells(size: int) -> Array:
    """Number of the cell of every pixel along one side."""
    count = max(1, min(CELLS, size // 2))
    cells: Array = np.arange(size) * count // size
    return cells
