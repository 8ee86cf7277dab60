"""Accuracies of the proof's rows, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from proof import BASELINES, DEAR, EARLIER, FEW, VARIANTS

from metamae.evaluation.feature_cache import POOLINGS
from metamae.report.intervals import student_margin

Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]
"""Data set and variant to seed to number of labels to the mean over draws, in points."""


POOLED = tuple(pooling for pooling in POOLINGS if pooling != "mean")
"""What may become of tokens beside their mean."""


class Difference(NamedTuple):
    """A paired difference over seeds, in points."""

    mean: float
    half: float | None
    """Half the 95 % interval; ``None`` from one seed."""
    p: float | None
    """Of the two-sided t test."""
    seeds: int

    def text(self) -> str:
        """As it stands in a table."""
        if self.half is None:
            return f"{self.mean:+.1f} (one seed)"
        return f"{self.mean:+.1f} ± {self.half:.1f}"


def pooling(rows: Sequence[Mapping[str, Any]], labels: str, among: Sequence[str] = POOLED) -> str:
    """What became of the tokens of one encoder's seeds, of what all of them were measured with.

    Chosen on validation cuts of training rows, with all labels for all and with few for the rest.

    Args:
        rows: Of the seeds.
        labels: A number of them, or ``all``.
        among: What may be chosen beside the mean.

    Returns:
        Where a row keeps the accuracies: ``values``, of the mean, ``tokens`` or ``joined``.
    """
    judged = "all" if labels == "all" else str(FEW)

    def score(kind: str) -> float:
        name = "mean" if kind == "values" else kind
        return float(np.mean([np.mean(row["validation"][name][judged]) for row in rows]))

    more = [kind for kind in among if all(kind in row for row in rows)]
    return max(("values", *more), key=score) if more else "values"


def shared_kinds(
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], dataset: str, variant: str
) -> list[str]:
    """What may become of tokens on a set: what every encoder there was measured with.

    Encoders of the preset are one group; those of the preset before, and parts of MetaMAE measured
    with it, are another.
    """
    earlier = any((dataset, name) in found for name in EARLIER)
    names = EARLIER if earlier and variant not in VARIANTS else VARIANTS
    rows = [r for n in names for r in found.get((dataset, n), ())]
    return [kind for kind in POOLED if all(kind in row for row in rows)]


def grouped(
    rows: Sequence[Mapping[str, Any]], stage: str = "fixed"
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows of a stage by data set and variant."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["stage"] == stage:
            found.setdefault((row["dataset"], row["variant"]), []).append(row)
    return found


def read_values(rows: Sequence[Mapping[str, Any]], stage: str = "fixed") -> Values:
    """Means over draws, of the :func:`pooling` that is chosen for every encoder and data set."""
    found = grouped(rows, stage)
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for key, seeds in found.items():
        among = shared_kinds(found, *key)
        values[key] = {
            row["seed"]: {
                labels: 100 * float(np.mean(row[pooling(seeds, labels, among)][labels]))
                for labels in row["values"]
            }
            for row in seeds
        }
    return values


def difference(values: Values, dataset: str, a: str, b: str, labels: str) -> Difference | None:
    """Of two variants, seed by seed; what has no seed stands beside each."""
    first, second = values.get((dataset, a), {}), values.get((dataset, b), {})
    if b in (*BASELINES, *DEAR) and second:
        second = dict.fromkeys(first, second[0])
    shared = sorted(s for s in first if s in second and labels in first[s] and labels in second[s])
    return summarise([first[s][labels] - second[s][labels] for s in shared])


def summarise(differences: Sequence[float]) -> Difference | None:
    """Mean, interval and p of paired differences."""
    count = len(differences)
    if count == 0:
        return None
    mean = float(np.mean(differences))
    if count == 1:
        return Difference(mean, None, None, 1)
    from scipy.stats import t as student

    error = max(float(np.std(differences, ddof=1)) / count**0.5, 1e-9)
    p = 2 * float(student.sf(abs(mean) / error, count - 1))
    return Difference(mean, student_margin(error, count), p, count)


def over_sets(
    values: Values, sets: Sequence[str], a: str, b: str, labels: str
) -> Difference | None:
    """The mean over sets of a difference, seed by seed."""
    by_seed: dict[int, list[float]] = {}
    for dataset in sets:
        first, second = values.get((dataset, a), {}), values.get((dataset, b), {})
        if b in (*BASELINES, *DEAR) and second:
            second = dict.fromkeys(first, second[0])
        for seed in first:
            if seed in second and labels in first[seed] and labels in second[seed]:
                by_seed.setdefault(seed, []).append(first[seed][labels] - second[seed][labels])
    return summarise([float(np.mean(d)) for d in by_seed.values() if len(d) == len(sets)])


def holm(differences: Sequence[Difference | None]) -> list[str]:
    """Win, tie or loss of each at the 5 % level, by Holm's correction over all of them."""
    words = ["-" if d is None or d.p is None else "tie" for d in differences]
    tested = [(n, d) for n, d in enumerate(differences) if d is not None and d.p is not None]
    for rank, (number, d) in enumerate(sorted(tested, key=lambda pair: pair[1].p or 0.0)):
        if d.p is None or d.p > 0.05 / (len(tested) - rank):
            break
        words[number] = "win" if d.mean > 0 else "loss"
    return words
