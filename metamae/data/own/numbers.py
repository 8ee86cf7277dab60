"""Columns of numbers, made alike: what they are measured in does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np

from metamae.data.dataset import Array

HEAVY = 20.0
"""Robust deviations beyond which a column has heavy tails, and is bent."""
FARTHEST = 8.0
"""Deviations at which a value is cut off."""


def fit_number(values: Array) -> dict[str, Any] | None:
    r"""How a column becomes standard numbers, from its training rows.

    With the median :math:`m` and :math:`w`, the quartiles' distance by 1.349 (the deviation where
    the quartiles meet), a value becomes :math:`u = (x - m) / w`. Where training rows reach beyond
    20, :math:`u` is replaced by :math:`\operatorname{asinh} u`, which is linear near 0 and a
    logarithm far out. Mean and deviation of the result give the standard number, cut off at 8.

    Args:
        values: float64, NaN where a cell is missing.

    Returns:
        Plain values for the recipe; ``None`` for a column that is constant or empty.

    Example:
        >>> import numpy as np
        >>> from metamae.data.own.numbers import apply_number, fit_number
        >>> celsius = np.array([10.0, 15.0, 20.0, np.nan])
        >>> fahrenheit = celsius * 1.8 + 32
        >>> standard = apply_number(fit_number(celsius), celsius)
        >>> np.allclose(standard, apply_number(fit_number(fahrenheit), fahrenheit), equal_nan=True)
        True
    """
    there = values[~np.isnan(values)]
    if len(there) == 0 or (there == there[0]).all():
        return None
    low, centre, high = (float(value) for value in np.percentile(there, [25, 50, 75]))
    width = (high / 1.349 - low / 1.349) or _deviation(there, centre)
    bent = bool((np.abs(there - centre) > HEAVY * width).any())
    fitted: dict[str, Any] = {"centre": centre, "width": width, "bent": bent}
    u = _bend(fitted, there)
    mean, deviation = float(u.mean()), float(u.std())
    return fitted | {"mean": mean, "deviation": deviation or 1.0}


def _deviation(values: Array, centre: float) -> float:
    """Root mean square distance from a centre, without overflow."""
    largest = float(np.abs(values - centre).max())
    return largest * float(np.sqrt(np.square((values - centre) / largest).mean()))


def apply_number(fitted: dict[str, Any], values: Array) -> Array:
    """Standard numbers, float32, NaN where a cell is missing."""
    standard = (_bend(fitted, values) - fitted["mean"]) / fitted["deviation"]
    clipped: Array = np.clip(standard, -FARTHEST, FARTHEST).astype(np.float32)
    return clipped


def _bend(fitted: dict[str, Any], values: Array) -> Array:
    with np.errstate(over="ignore"):
        u = (values - fitted["centre"]) / fitted["width"]
        bent: Array = np.arcsinh(u) if fitted["bent"] else u
        return bent
