"""What curves over numbers of labels say: intervals, equal numbers of labels, a recommendation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array
from metamae.evaluation.drawing import ALL, Stage, nearest, overlap
from metamae.report.intervals import LEVEL, student_margin

RESAMPLES = 1000
FEW_A_CLASS, FEW_NUMBERS = 5, 50
"""Numbers of labels at which "few" is decided: a class, or of numbers in all."""

BASE = "raw_logistic"
"""Candidates are ranked by their advantage over this one, draw by draw."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Everything that was measured.

    Attributes:
        titles: Candidate to its name in sentences, in the order of tables.
        pretrained: Candidates that were pretrained.
        numbers: Numbers of labels, :data:`~metamae.evaluation.drawing.ALL` last.
        by_class: Whether numbers are of every class.
        all_labels: What all labels are in the same unit.
        metric: Name of the metric.
        test_rows: Number of test rows.
        values: Stage and candidate to number of labels to values ``(seeds, draws)``.
        commonest: Accuracy on test rows of answering the training rows' commonest class; ``None``
            where that says nothing.
    """

    titles: Mapping[str, str]
    pretrained: tuple[str, ...]
    numbers: tuple[int, ...]
    by_class: bool
    all_labels: float
    metric: str
    test_rows: int
    values: Mapping[tuple[Stage, str], Mapping[int, Array]]
    commonest: float | None = None

    @property
    def few(self) -> int:
        """The number of labels at which "few" is decided."""
        return nearest(self.numbers, FEW_A_CLASS if self.by_class else FEW_NUMBERS)

    def place(self, number: int) -> float:
        """A number of labels as a number, all labels too."""
        return self.all_labels if number == ALL else float(number)

    def unit(self, number: int) -> str:
        """A number of labels in words."""
        if number == ALL:
            return "all labels"
        plural = "" if number == 1 else "s"
        return f"{number} label{plural}" + (" a class" if self.by_class else "")

    def mean(self, stage: Stage, name: str, number: int) -> float:
        """Mean over seeds and draws."""
        return float(self.values[stage, name][number].mean())

    def means(self, stage: Stage, first: str, second: str, number: int) -> tuple[float, float]:
        """Means of two candidates over seeds and the draws that both have."""
        tables = (self.values[stage, name][number] for name in (first, second))
        one, two = shared_draws(*tables)
        return float(one.mean()), float(two.mean())


def shared_draws(first: Array, second: Array) -> tuple[Array, Array]:
    """Of two tables ``(seeds, draws)`` the draws that both have: dear candidates have fewer."""
    draws = min(first.shape[1], second.shape[1])
    return first[:, :draws], second[:, :draws]


def interval(values: Array, seed: int = 0) -> Interval:
    """Mean over seeds and draws, and its interval: both are drawn anew, with replacement.

    Args:
        values: ``(seeds, draws)``.
        seed: Seed of the bootstrap.

    Example:
        >>> import numpy as np
        >>> from metamae.report.label_curves import interval
        >>> interval(np.array([[0.5, 0.5, 0.5]]))
        Interval(value=0.5, low=0.5, high=0.5)
    """
    return _interval(float(values.mean()), _resampled(values, seed, "interval"))


def _resampled(values: Array, seed: int, stream: str) -> Array:
    """Means of samples of seeds and draws, ``(resamples,)``."""
    random = np.random.default_rng(fold(seed, stream))
    seeds, draws = values.shape
    rows = random.integers(seeds, size=(RESAMPLES, seeds))
    columns = random.integers(draws, size=(RESAMPLES, draws))
    means: Array = values[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    return means


def _interval(value: float, samples: Sequence[float] | Array) -> Interval:
    """Percentiles of samples, infinite ones among them."""
    ordered = sorted(samples)
    tail = (1 - LEVEL) / 2
    low, high = (float(ordered[round(p * (len(ordered) - 1))]) for p in (tail, 1 - tail))
    return Interval(value, low, high)


def paired_difference(first: Array, second: Array) -> Interval:
    """Mean difference on the draws that both have, on validation cuts, with Student's interval.

    Cuts overlap, which the variance accounts for (:func:`metamae.evaluation.drawing.overlap`); that
    between seeds of pretraining is added.

    Args:
        first: ``(seeds, draws)``.
        second: ``(seeds, draws)``.

    Example:
        >>> import numpy as np
        >>> from metamae.report.label_curves import paired_difference
        >>> paired_difference(np.array([[0.5, 0.75]]), np.array([[0.25, 0.5]]))
        Interval(value=0.25, low=0.25, high=0.25)
    """
    first, second = shared_draws(first, second)
    draws = first.shape[1]
    differences = first.mean(0) - second.mean(0)
    value = float(differences.mean())
    if draws < 2:
        return Interval(value, -math.inf, math.inf)
    variance = float(differences.var(ddof=1)) * overlap(draws)
    for values in (first, second):
        if len(values) > 1:
            variance += float(values.mean(1).var(ddof=1)) / len(values)
    margin = student_margin(math.sqrt(variance), draws)
    return Interval(value, value - margin, value + margin)


def equal_labels(curves: Curves, name: str, other: str, number: int, seed: int = 0) -> Interval:
    """Labels that one candidate needs to do what another does with a number of them; test rows.

    Accuracy is interpolated over the logarithm of the number of labels, and made to never fall
    again. Infinity means more than all labels; the smallest number, that or fewer. The interval is
    that of a bootstrap over draws and seeds; of both the draws count that both have.

    Args:
        curves: What was measured.
        name: The candidate whose number of labels is given.
        other: The candidate whose number is asked for.
        number: The number.
        seed: Seed of the bootstrap.
    """
    target, by_number = curves.values["test", name][number], curves.values["test", other]
    target, _ = shared_draws(target, by_number[number])
    by_number = {n: shared_draws(values, target)[0] for n, values in by_number.items()}
    places = np.log([curves.place(n) for n in curves.numbers])

    def needed(goal: float, means: Array) -> float:
        return math.exp(_crossing(places, np.maximum.accumulate(means), goal))

    value = needed(float(target.mean()), np.array([by_number[n].mean() for n in curves.numbers]))
    means = [_resampled(by_number[n], seed, f"curve {n}") for n in curves.numbers]
    goals = _resampled(target, seed, f"curve {number}")  # on the same draws
    samples = [
        needed(float(goal), row) for goal, row in zip(goals, np.stack(means, 1), strict=True)
    ]
    return _interval(value, samples)


def _crossing(places: Array, means: Array, goal: float) -> float:
    """Where a curve that never falls first reaches a goal; infinity where it does not."""
    after = int(np.searchsorted(means, goal, side="left"))
    if after == 0:
        return float(places[0])
    if after == len(means):
        return math.inf
    share = (goal - means[after - 1]) / (means[after] - means[after - 1])
    return float(places[after - 1] + share * (places[after] - places[after - 1]))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A recommendation for a number of labels, taken on validation cuts of the training rows.

    Attributes:
        number: The number of labels.
        plain: The best candidate without pretraining.
        pretrained: The best that was pretrained.
        difference: The latter's metric minus the former's, on validation cuts.
    """

    number: int
    plain: str
    pretrained: str
    difference: Interval

    @property
    def pays(self) -> bool:
        """Whether pretraining is recommended: its advantage is beyond chance."""
        return self.difference.low > 0

    @property
    def recommended(self) -> str:
        """The candidate to use."""
        return self.pretrained if self.pays else self.plain

    @property
    def rival(self) -> str:
        """The candidate that was not recommended."""
        return self.plain if self.pays else self.pretrained


def decide(curves: Curves, number: int) -> Decision:
    """Choose the best of each kind, and between them.

    The best is the one with the largest mean advantage over raw inputs with a linear model, on the
    draws that it shares with that. Pretraining costs time and has to show: it is recommended only
    where the interval of the paired difference is above zero.
    """
    base = curves.values["validation", BASE][number].mean(0)

    def advantage(name: str) -> float:
        values = curves.values["validation", name][number].mean(0)
        draws = min(len(values), len(base))
        return float((values[:draws] - base[:draws]).mean())

    plain = max((n for n in curves.titles if n not in curves.pretrained), key=advantage)
    pretrained = max(curves.pretrained, key=advantage)
    difference = paired_difference(
        *(curves.values["validation", name][number] for name in (pretrained, plain))
    )
    return Decision(number=number, plain=plain, pretrained=pretrained, difference=difference)
