"""Names, numbers and their spread as text, the same in every table and line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from metamae.report.comparison import Paired, Summary, deviation
from metamae.report.published import Published
from metamae.report.rows import DEFAULT

LABELS = {
    "random": "random init",
    "emix": "e-Mix",
    "shed": "ShED",
    "capri": "Capri",
    "mae_linear": "MAE (linear)",
    "lfr": "LFR",
    "mae": "MAE (deep)",
    "umae": "U-MAE",
    "mae_contrast": "MAE + contrast of two masks",
    "gon": "GON",
    "metamae": "MetaMAE",
    "supervised": "supervised",
}


def mean_and_spread(values: Sequence[float], metric: str = "accuracy") -> str:
    """Mean and sample deviation; no deviation is claimed from one value.

    Example:
        >>> from metamae.report.wording import mean_and_spread
        >>> mean_and_spread([0.5, 0.6]), mean_and_spread([0.5])
        ('55.0 ± 7.1', '50.0')
    """
    return with_spread(statistics.mean(values), deviation(values), metric)


def describe_place(dataset: str, transfer: str) -> str:
    """A data set, or the one pretrained on and the one probed on.

    Example:
        >>> from metamae.report.wording import describe_place
        >>> describe_place("digits", "digits"), describe_place("sensors", "basic_motions")
        ('digits', 'sensors -> basic_motions')
    """
    return dataset if dataset == transfer else f"{dataset} -> {transfer}"


def describe_pairs(pairs: Sequence[Paired]) -> list[str]:
    """The place of every pair in words, with its steps where a place has several numbers of them.

    Example:
        >>> from metamae.report.comparison import Paired
        >>> from metamae.report.wording import describe_pairs
        >>> place = dict(variant="default", protocol="knn", metric="accuracy", differences=(0.1,))
        >>> made = [("digits", 100), ("digits", 900), ("tabular", 100)]
        >>> pairs = [Paired(dataset=d, transfer=d, steps=steps, **place) for d, steps in made]
        >>> describe_pairs(pairs)
        ['digits, 100 steps', 'digits, 900 steps', 'tabular']
    """
    counts: dict[tuple[str, str], set[int]] = {}
    for pair in pairs:
        counts.setdefault((pair.dataset, pair.transfer), set()).add(pair.steps)
    return [
        describe_place(pair.dataset, pair.transfer)
        + (f", {pair.steps} steps" if len(counts[pair.dataset, pair.transfer]) > 1 else "")
        for pair in pairs
    ]


def describe_metric(metric: str) -> str:
    """Name of a metric, with the unit that :func:`number` writes it in.

    Example:
        >>> from metamae.report.wording import describe_metric
        >>> describe_metric("weighted_f1"), describe_metric("spearman")
        ('weighted f1, %', 'spearman')
    """
    return metric if metric == "spearman" else f"{metric.replace('_', ' ')}, %"


def label(method: str, variant: str) -> str:
    """Name of a method and its variant in a table."""
    name = LABELS.get(method, method)
    return name if variant == DEFAULT else f"{name}, {variant}"


def show(line: Summary) -> str:
    """Mean and spread over seeds; in percent, but for a correlation.

    From one seed only the deviation over draws of labels can be shown, in brackets.
    """
    mean = with_spread(line.mean, line.spread, line.metric)
    alone = line.spread is None and line.draws
    return f"{mean} ({number(line.draws, line.metric)})" if alone else mean


def with_spread(mean: float, spread: float | None, metric: str, *, sign: bool = False) -> str:
    """A mean and what it may be off by, where that is known."""
    text = number(mean, metric, sign=sign)
    return text if spread is None else f"{text} ± {number(spread, metric)}"


def number(value: float, metric: str, *, sign: bool = False) -> str:
    """A value of a metric as text.

    Example:
        >>> from metamae.report.wording import number
        >>> (
        ...     number(0.8766, "accuracy"),
        ...     number(0.531, "spearman"),
        ...     number(0.01, "accuracy", sign=True),
        ... )
        ('87.7', '0.53', '+1.0')
    """
    plus = "+" if sign else ""
    return f"{value:{plus}.2f}" if metric == "spearman" else f"{100 * value:{plus}.1f}"


def show_published(numbers: Sequence[Published]) -> str:
    """The paper's number with its mark; where tables disagree, all of them with their table."""
    texts = {
        f"{number(published.value, published.metric)}{published.mark}": published.table
        for published in reversed(numbers)
    }
    if len({text.rstrip("*+") for text in texts}) > 1:
        return ", ".join(f"{text} ({table})" for text, table in reversed(texts.items()))
    return next(reversed(texts), "-")
