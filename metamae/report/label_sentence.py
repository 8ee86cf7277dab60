"""A recommendation in one sentence with numbers, and whether it held on the test rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metamae.data.dataset import Array
from metamae.evaluation.drawing import ALL
from metamae.report.label_curves import (
    Curves,
    Decision,
    Interval,
    equal_labels,
    interval,
    shared_draws,
)
from metamae.report.wording import number as as_text


def show_labels(labels: Interval, curves: Curves) -> str:
    """A number of labels and its interval, what is beyond the measured ones said.

    Example:
        >>> from metamae.report.label_curves import Curves, Interval
        >>> from metamae.report.label_sentence import show_labels
        >>> curves = Curves(
        ...     titles={},
        ...     pretrained=(),
        ...     numbers=(1, 5, 0),
        ...     by_class=True,
        ...     all_labels=80.4,
        ...     metric="accuracy",
        ...     test_rows=9,
        ...     values={},
        ... )
        >>> show_labels(Interval(21.2, 16.0, float("inf")), curves)
        '21 [16, more than all 80]'
    """
    first = curves.place(curves.numbers[0])

    def show(value: float) -> str:
        if math.isinf(value):
            return f"more than all {curves.all_labels:.0f}"
        if value <= first:
            return f"{first:.0f} or fewer" if first > 1 else "1"
        return f"{value:.0f}"

    return f"{show(labels.value)} [{show(labels.low)}, {show(labels.high)}]"


def show_value(value: float, metric: str, *, sign: bool = False) -> str:
    """A value of a metric with its unit.

    Example:
        >>> from metamae.report.label_sentence import show_value
        >>> show_value(0.8415, "accuracy"), show_value(0.31, "spearman", sign=True)
        ('84.2 %', '+0.31')
    """
    return as_text(value, metric, sign=sign) + ("" if metric == "spearman" else " %")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a decision was on the test rows.

    Attributes:
        decision: The decision.
        difference: The recommended candidate's metric minus its rival's, on the test rows.
        best: The candidate that was best there.
        regret: How much better that was than the recommended one.
        word: ``right``, ``wrong``, or ``too close to call``.
    """

    decision: Decision
    difference: Interval
    best: str
    regret: float
    word: str


def judge(curves: Curves, decision: Decision) -> Verdict:
    """Look at the test rows once the decision is taken.

    It was right where the recommended candidate was better than its rival, wrong where it was
    worse, and too close to call within the interval of the difference: over draws and seeds, and
    with the chance of so few test rows.
    """
    number = decision.number
    values = curves.values
    ours, theirs = (values["test", name][number] for name in (decision.recommended, decision.rival))
    difference = _difference(ours, theirs, _noise(float(ours.mean()), float(theirs.mean()), curves))
    ahead = {}
    for name in curves.titles:  # on the draws that both have
        one, other = curves.means("test", name, decision.recommended, number)
        ahead[name] = one - other
    best = max(ahead, key=lambda name: ahead[name])
    word = "too close to call"
    if not difference.low <= 0 <= difference.high:
        word = "right" if difference.value > 0 else "wrong"
    return Verdict(
        decision=decision,
        difference=difference,
        best=best,
        regret=ahead[best],
        word=word,
    )


def _difference(first: Array, second: Array, noise: float) -> Interval:
    one, other = shared_draws(first, second)
    paired = one.mean(0) - other.mean(0)
    spread = interval(paired[None])
    between = sum(
        float(values.mean(1).var(ddof=1)) / len(values)
        for values in (first, second)
        if len(values) > 1
    )
    margin = math.hypot(1.96 * math.hypot(noise, math.sqrt(between)), spread.value - spread.low)
    return Interval(spread.value, spread.value - margin, spread.value + margin)


def _noise(first: float, second: float, curves: Curves) -> float:
    """Standard error of a difference from the number of test rows, as of unpaired predictions.

    A share of 0 or 1 among few rows is no certainty: one success and one failure are added.
    """
    rows = max(curves.test_rows, 2)
    if curves.metric == "spearman":
        bounded = (min(abs(value), 1 - 1 / rows) for value in (first, second))
        return math.sqrt(sum((1 - value**2) ** 2 for value in bounded) / (rows - 1))
    shares = ((value * rows + 1) / (rows + 2) for value in (first, second))
    return math.sqrt(sum(max(share * (1 - share), 0.0) for share in shares) / rows)


def _in_words(name: str, title: str) -> str:
    """A candidate as the object of "use" and "with"."""
    words = {
        "scratch": "the same network trained from scratch",
        "random": "an untrained encoder",
        "field": title.replace(" + ", " and "),
    }
    return words.get(name, title)


def write_sentence(curves: Curves, few: Decision, every: Decision) -> str:
    """The whole comparison in one sentence; recommendations are those of the validation cuts.

    Args:
        curves: What was measured.
        few: The decision for few labels.
        every: The decision for all labels.
    """
    titles = {name: _in_words(name, title) for name, title in curves.titles.items()}
    unit = curves.unit(few.number)
    ours, theirs = (
        show_value(value, curves.metric)
        for value in curves.means("test", few.pretrained, few.plain, few.number)
    )
    if few.number == ALL:
        same = f"{titles[few.pretrained]} reaches {ours} and {titles[few.plain]} {theirs}"
    else:
        labels = show_labels(equal_labels(curves, few.pretrained, few.plain, few.number), curves)
        same = (
            f"{unit} with {titles[few.pretrained]} do what {labels} do with {titles[few.plain]} "
            f"({ours} against {theirs} with {unit}, test rows)"
        )
    if few.pays:
        text = f"Pretraining pays here: {same}"
    else:
        text = f"It does not pay here: use {titles[few.plain]}; {same}"
    if every.number == few.number or every.recommended == few.recommended:
        return f"{text}."
    return f"{text}; with all labels, use {titles[every.recommended]}."
