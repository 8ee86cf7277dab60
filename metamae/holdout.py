"""A validation cut of labelled rows, by groups where rows belong together."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError
from metamae.randomness import fold

SHARE = 0.25
"""Share of the rows held out."""


def hold_out(
    labels: Array, groups: Array | None = None, *, classes: bool = True, seed: int = 0
) -> tuple[Array, Array]:
    """Indices of rows to fit on and of rows to validate on.

    Whole groups (subjects, clusters, places) are drawn in random order until a quarter of the rows
    is held out; a group without which a class would have no row to fit on is passed over.

    Args:
        labels: ``(N,)`` class indices, or numbers.
        groups: ``(N,)`` group of each row; rows are their own groups when absent.
        classes: Whether the labels are classes.
        seed: Seed of the order; the cut is a function of it and of the rows.

    Raises:
        DataError: nothing can be held out.

    Example:
        >>> import numpy as np
        >>> from metamae.holdout import hold_out
        >>> fit, validation = hold_out(np.tile([0, 1], 8), np.repeat([0, 1, 2, 3], 4))
        >>> len(fit), len(validation), len(set(validation // 4))
        (12, 4, 1)
    """
    names, group = np.unique(
        np.arange(len(labels)) if groups is None else groups, return_inverse=True
    )
    _, label = np.unique(labels, return_inverse=True) if classes else (None, np.zeros_like(group))
    table = np.zeros((len(names), label.max(initial=0) + 1), dtype=np.int64)
    np.add.at(table, (group, label), 1)
    left, held = table.sum(0), np.zeros(len(names), dtype=bool)
    rows = 0
    for number in np.random.default_rng(fold(seed, "validation cut")).permutation(len(names)):
        if rows >= SHARE * len(labels):
            break
        if ((left - table[number]) > 0).all():
            held[number], left, rows = True, left - table[number], rows + table[number].sum()
    if rows == 0:
        raise DataError(
            f"expected rows to hold out for validation, got {len(labels)} rows in {len(names)} "
            "groups of which no class can spare one; use more labelled rows, or another protocol"
        )
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])
