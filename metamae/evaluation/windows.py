"""Statistics of windows of a series: what is computed by hand where signals are classified."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array

WINDOWS = 4
SHORTEST = 8
"""Steps of the shortest window."""
BANDS = 4
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def window_statistics(series: Array) -> Array:
    """Statistics of every channel, over the whole series and over windows of it.

    Mean, deviation, least and largest value, five quantiles, slope, and the logarithm of the energy
    in four bands of frequencies (equal shares of the spectrum, the mean left out). Windows are four
    equal parts, fewer where they would be shorter than eight steps.

    Args:
        series: ``(N, C, T)``.

    Returns:
        ``(N, D)``, float32.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.windows import window_statistics
        >>> window_statistics(np.zeros((3, 2, 16))).shape
        (3, 84)
    """
    series = np.asarray(series, np.float64)
    length = series.shape[-1]
    count = max(1, min(WINDOWS, length // SHORTEST))
    edges = np.linspace(0, length, count + 1).astype(int)
    parts = [series] if count == 1 else [series, *np.split(series, edges[1:-1], axis=-1)]
    features = np.concatenate([_statistics(part) for part in parts], axis=-1)  # (N, C, windows * S)
    flat: Array = features.reshape(len(series), -1).astype(np.float32)
    return flat


def _statistics(x: Array) -> Array:
    """Statistics along the last axis, ``(N, C, T)`` to ``(N, C, S)``."""
    time = np.linspace(-1, 1, x.shape[-1])
    centred = x - x.mean(-1, keepdims=True)
    slope = (centred * time).mean(-1) / max(float((time**2).mean()), 1e-9)
    columns = [x.mean(-1), x.std(-1), x.min(-1), x.max(-1), slope]
    columns += list(np.quantile(x, QUANTILES, axis=-1))
    energy = np.abs(np.fft.rfft(centred, axis=-1))[..., 1:] ** 2
    columns += [np.log1p(_total(band)) for band in np.array_split(energy, BANDS, axis=-1)]
    features: Array = np.stack(columns, axis=-1)
    return features


def _total(band: Array) -> Array:
    total: Array = band.sum(-1) if band.shape[-1] else np.zeros(band.shape[:-1])
    return total
