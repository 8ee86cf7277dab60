"""Rows of an array as an input has them, and what they are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from metamae.data.dataset import Array, Rows
from metamae.errors import DataError

BLOCK = 1 << 24
"""Bytes of an array that are looked at together."""


@dataclass(frozen=True)
class Laid:
    """Rows of an array, laid out as an input has them: channels first, cut to whole tokens.

    Attributes:
        array: The array, perhaps on disk.
        recipe: How; of :func:`metamae.data.own.grids.fit_array`.
    """

    array: Rows
    recipe: dict[str, Any]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.array)

    def __getitem__(self, rows: Any) -> Array:
        """Rows, converted when asked for."""
        x = np.asarray(self.array[rows])
        recipe = self.recipe
        sides = 1 if recipe["kind"] == "signal" else 2
        if recipe["layout"] == "flat":
            x = np.expand_dims(x, -1 - sides)
        elif recipe["layout"] == "channels_last":
            x = np.moveaxis(x, -1, -1 - sides)
        for axis, (first, size) in enumerate(recipe["kept"], start=x.ndim - sides):
            x = x[(slice(None),) * axis + (slice(first, first + size),)]
        if "offset" in recipe:
            offset = np.asarray(recipe["offset"]).reshape(-1, *[1] * sides)
            x = (x.astype(np.float64) - offset) / recipe["unit"]
        laid: Array = np.ascontiguousarray(x)
        return laid


def moments(rows: Rows, name: str, training: Array | None = None) -> tuple[Array, Array]:
    """Mean and deviation of every channel over training rows, float64; all rows are looked at.

    Raises:
        DataError: values that are not finite.
    """
    count, size = len(rows), max(1, np.asarray(rows[0:1]).nbytes)
    step = max(1, BLOCK // size)
    chosen = np.ones(count, bool) if training is None else np.isin(np.arange(count), training)
    total, mean, squares = 0, np.zeros(()), np.zeros(())
    for start in range(0, count, step):
        block = np.asarray(rows[start : start + step]).astype(np.float64)
        bad = ~np.isfinite(block).reshape(len(block), -1).all(1)
        if bad.any():
            raise DataError(
                f"expected finite values in {name}, got others in row "
                f"{start + int(np.flatnonzero(bad)[0])} ({bad.sum()} such rows in "
                f"{start} to {start + len(block) - 1}); mend or drop them"
            )
        block = block[chosen[start : start + step]]
        if not len(block) or block.ndim < 3:
            continue
        # Chan's rule for joining means and sums of squares.
        axes = (0, *range(2, block.ndim))
        ours, number = block.mean(axes), block.size // block.shape[1]
        moved = ours - mean
        centred = block - ours.reshape(-1, *[1] * (block.ndim - 2))
        squares = (
            squares + np.square(centred).sum(axes) + moved**2 * total * number / (total + number)
        )
        mean, total = mean + moved * number / (total + number), total + number
    return mean, np.sqrt(squares / max(total, 1))
