"""Which rows are for pretraining, for training a probe, and for testing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array
from metamae.data.own.facts import Facts
from metamae.data.own.targets import Targets, has_label
from metamae.errors import DataError, shown


@dataclass(frozen=True)
class RowSplit:
    """Ascending row numbers of each part, and how they were drawn; without a label no test."""

    pretrain: Array
    train: Array | None
    test: Array | None
    remark: str


def split_rows(
    facts: Facts,
    targets: Targets | None,
    *,
    test_share: float,
    seed: int,
    pretrain_on_test: bool = False,
) -> RowSplit:
    """Draw test rows, whole groups or rows, or take those that are marked.

    At random, every class gives the same share, and keeps a training row. Test rows without a label
    are of no use for testing: they stay out of pretraining all the same where they are marked.

    Args:
        facts: Groups and marks, where there are some.
        targets: Labels; without any nothing is held out, unless marks say so.
        test_share: Share of test rows, where they are drawn.
        seed: Seed of the draw.
        pretrain_on_test: Whether test rows are pretrained on.

    Raises:
        DataError: an impossible share, one group only, or too few rows.
    """
    if isinstance(test_share, bool) or not isinstance(test_share, int | float):
        raise DataError(f"expected test_share between 0 and 1, got {shown(test_share)}")
    if not 0 < test_share < 1:
        raise DataError(f"expected test_share between 0 and 1, got {test_share}")
    rows = np.arange(len(facts.ids))
    if facts.marks is not None:
        marks = np.asarray(facts.marks, object)
        is_test, only = marks == "test", marks == "pretrain"
        how = "as marked"
    elif targets is None:
        return RowSplit(rows, None, None, f"no label: all {len(rows)} rows are pretrained on")
    else:
        rng = np.random.default_rng(fold(seed, "split"))
        drawn = _groups(facts, targets, test_share, rng)
        is_test = _rows(targets, test_share, rng) if drawn is None else drawn
        only = np.zeros(len(rows), bool)
        how = f"drawn with seed {seed}" + (", by class" if drawn is None else ", by group")
        if drawn is None and targets.task.kind == "regression":
            how = f"drawn with seed {seed}"
    seen = rows if pretrain_on_test else rows[~is_test]
    pretrained = "pretrained on as well" if pretrain_on_test else "not pretrained on"
    if targets is None:
        remark = f"no label: {len(seen)} rows are pretrained on, {is_test.sum()} are held out"
        return RowSplit(seen, None, None, remark)
    there = has_label(targets.codes)
    train, test = rows[~is_test & ~only & there], rows[is_test & there]
    test, lost = _known_classes(targets, train, test)
    if not len(train) or not len(test):
        raise DataError(
            f"expected labelled rows for training and for testing, got {len(train)} and "
            f"{len(test)}; give more labelled rows, another split or another test share"
        )
    remark = (
        f"split: {len(seen)} rows to pretrain on, {len(train)} labelled ones to train a probe, "
        f"{len(test)} to test it ({how}; {pretrained}){lost}"
    )
    return RowSplit(seen, train, test, remark)


def _rows(targets: Targets, share: float, rng: np.random.Generator) -> Array:
    """Test rows, the same share of every class; classes of one row are for training."""
    codes, is_test = targets.codes, np.zeros(len(targets.codes), bool)
    there = has_label(codes)
    strata = np.where(there, codes, -1) if codes.dtype.kind == "i" else there.astype(np.int64) - 1
    for stratum in np.unique(strata[there]):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        is_test[members[:count]] = True
    return is_test


def _groups(facts: Facts, targets: Targets, share: float, rng: np.random.Generator) -> Array | None:
    if facts.groups is None:
        return None
    groups = facts.groups
    numbers, sizes = np.unique(groups, return_counts=True)
    if len(numbers) < 2:
        raise DataError(
            "expected two groups or more to keep some for testing, got one; leave --group out, or "
            "give another split"
        )
    order = rng.permutation(len(numbers))
    total = np.cumsum(sizes[order])
    # As many groups as come nearest to the share; one at least on either side.
    count = int(np.abs(total - share * len(groups)).argmin()) + 1
    chosen: Array = np.isin(groups, numbers[order[: min(count, len(numbers) - 1)]])
    return chosen


def _known_classes(targets: Targets, train: Array, test: Array) -> tuple[Array, str]:
    """Test rows whose class some training row has; others cannot be learned."""
    if targets.task.kind == "regression":
        return test, ""
    known = np.isin(targets.codes[test], targets.codes[train])
    if known.all():
        return test, ""
    names = [targets.task.classes[n] for n in np.unique(targets.codes[test[~known]])]
    return test[known], (
        f"; {(~known).sum()} test rows are left out, no training row has their class: "
        f"{', '.join(names[:6])}"
    )
