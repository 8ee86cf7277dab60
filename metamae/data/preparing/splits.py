"""The benchmark's splits: one shuffle with seed 42, then 90 % and 10 %."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array


def shuffled(rows: int) -> Array:
    """Row order of the benchmark: that of pandas' ``sample(frac=1, random_state=42)``.

    Example:
        >>> from metamae.data.preparing.splits import shuffled
        >>> shuffled(5).tolist()
        [1, 4, 2, 0, 3]
    """
    # The legacy generator is the point: the published order comes from it.
    order: Array = np.random.RandomState(42).permutation(rows)
    return order


def ninety_ten(order: Array) -> tuple[Array, Array]:
    """Cut an order into its first 90 % (rounded up) and last 10 %.

    Example:
        >>> import numpy as np
        >>> from metamae.data.preparing.splits import ninety_ten
        >>> [len(part) for part in ninety_ten(np.arange(2700))]
        [2430, 270]
    """
    last = len(order) // 10
    return order[: len(order) - last], order[len(order) - last :]
