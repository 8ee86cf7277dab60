"""What result rows say together: means over seeds, and paired differences of two methods."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metamae.config.names import known_methods
from metamae.data.pocket import POCKET, WITHOUT_NEWS
from metamae.evaluation.protocols import PROTOCOLS
from metamae.report.rows import DEFAULT, Result

TIE = 1e-9
"""Differences up to this size are ties: equal values, apart from rounding."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One (data set, transfer, method, variant, protocol) over its seeds.

    Attributes:
        dataset: Data set pretrained on.
        transfer: Data set probed on.
        method: Method name.
        variant: Variant name.
        steps: Pretraining steps.
        protocol: Evaluation protocol.
        metric: Name of the metric.
        mean: Mean over seeds.
        spread: Sample deviation over seeds; ``None`` from one seed.
        draws: Mean over seeds of the deviation over draws of labels; 0 where there are none.
        seeds: Number of seeds.
        seconds: Mean pretraining time.
    """

    dataset: str
    transfer: str
    method: str
    variant: str
    steps: int
    protocol: str
    metric: str
    mean: float
    spread: float | None
    draws: float
    seeds: int
    seconds: float


def summarise_results(rows: Iterable[Result]) -> list[Summary]:
    """Means over seeds, in the order of a report."""
    groups: dict[tuple[str, str, str, str, int, str], list[Result]] = {}
    for row in rows:
        place = (row.dataset, row.transfer, row.method, row.variant, row.steps, row.protocol)
        groups.setdefault(place, []).append(row)
    return sorted((_summary(group) for group in groups.values()), key=_order)


@dataclass(frozen=True, kw_only=True)
class Average:
    """A method over several data sets.

    Attributes:
        method: Method name.
        protocol: Evaluation protocol.
        mean: Mean over data sets, then over seeds.
        spread: Sample deviation over seeds of the mean over data sets; ``None`` from one seed.
    """

    method: str
    protocol: str
    mean: float
    spread: float | None


def average_over_sets(rows: Iterable[Result]) -> tuple[list[Average], list[str]]:
    """Means over the data sets that every method was run on, with the same seeds; and their names.

    Only encoders probed on what they were pretrained on, without overrides, and no correlations. A
    data set where a method was run for several numbers of steps is left out, and so are those of
    :data:`~metamae.data.pocket.WITHOUT_NEWS`.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        comparable = row.dataset == row.transfer and row.metric != "spearman"
        if comparable and row.variant == DEFAULT and has_news(row.dataset):
            groups.setdefault((row.protocol, row.method, row.dataset), []).append(row)
    values = {
        place: _by_seed((row.seed, row.value) for row in group)
        for place, group in groups.items()
        if len({row.steps for row in group}) == 1
    }
    protocols, methods, names = (sorted({place[n] for place in groups}) for n in range(3))
    cells = [(protocol, method) for protocol in protocols for method in methods]
    seeds = next(iter(values.values()), {}).keys()
    common = [
        name for name in names if all(values.get((*c, name), {}).keys() == seeds for c in cells)
    ]
    if not common or not seeds:  # no group has rows of one number of steps alone
        return [], []
    averages = []
    for protocol, method in cells:
        means = [
            statistics.mean(values[protocol, method, name][seed] for name in common)
            for seed in seeds
        ]
        averages.append(
            Average(
                method=method,
                protocol=protocol,
                mean=statistics.mean(means),
                spread=deviation(means),
            )
        )
    return averages, sorted(common, key=lambda name: rank(POCKET, name))


def has_news(*names: str) -> bool:
    """Whether results on these data sets belong in an average over sets."""
    return not any(name in WITHOUT_NEWS for name in names)


def news_note(names: Iterable[str]) -> list[str]:
    """A sentence on those of the data sets that no average holds, if there are any.

    Example:
        >>> from metamae.report.comparison import news_note
        >>> news_note(["sensors", "basic_motions"])
        ['Left out, for they tell no method from another: basic_motions (40 test rows).']
    """
    among = set(names)
    told = [f"{name} ({why})" for name, why in WITHOUT_NEWS.items() if name in among]
    text = f"Left out, for they tell no method from another: {', '.join(told)}."
    return [text] if told else []


def _summary(group: Sequence[Result]) -> Summary:
    """Several probes of one encoder count as one value, their mean."""
    first, seeds = group[0], _by_seed((row.seed, row.value) for row in group)
    values = list(seeds.values())
    return Summary(
        dataset=first.dataset,
        transfer=first.transfer,
        method=first.method,
        variant=first.variant,
        steps=first.steps,
        protocol=first.protocol,
        metric=first.metric,
        mean=statistics.mean(values),
        spread=deviation(values),
        draws=statistics.mean(row.spread for row in group),
        seeds=len(values),
        seconds=statistics.mean(row.pretrain_seconds for row in group),
    )


def _by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Mean of the values of every seed, seeds in order."""
    groups: dict[int, list[float]] = {}
    for seed, value in sorted(values):
        groups.setdefault(seed, []).append(value)
    return {seed: statistics.mean(group) for seed, group in groups.items()}


def _order(line: Summary) -> tuple[tuple[int, str], ...]:
    return (
        rank(POCKET, line.dataset),
        rank(POCKET, line.transfer),
        rank(known_methods(), line.method),
        rank((DEFAULT,), line.variant),
        (line.steps, ""),
        rank(PROTOCOLS, line.protocol),
    )


def deviation(values: Sequence[float]) -> float | None:
    """Sample deviation; none is claimed from one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def rank(known: Sequence[str], name: str) -> tuple[int, str]:
    """Sorts known names by their place, and others behind them by name."""
    return (known.index(name) if name in known else len(known), name)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences of two methods on equal seeds, in one place.

    Attributes:
        dataset: Data set pretrained on.
        transfer: Data set probed on.
        variant: Variant of the first method.
        protocol: Evaluation protocol.
        metric: Name of the metric.
        differences: First method's value minus the second's, seed by seed.
        steps: Optimisation steps of the one that was trained.
    """

    dataset: str
    transfer: str
    variant: str
    protocol: str
    metric: str
    differences: tuple[float, ...]
    steps: int = 0

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.mean(self.differences)

    @property
    def error(self) -> float | None:
        """Standard error of the mean difference; ``None`` from one seed."""
        spread = deviation(self.differences)
        return None if spread is None else float(spread / len(self.differences) ** 0.5)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Seeds that the first method wins, ties and loses."""
        return count_signs(self.differences, [TIE] * len(self.differences))

    @property
    def verdict(self) -> str:
        """``win`` or ``loss`` by more than one standard error, else ``tie``.

        One seed decides nothing, so that it is a tie whatever its size.
        """
        if self.error is None or abs(self.mean) <= max(self.error, TIE):
            return "tie"
        return "win" if self.mean > 0 else "loss"


def count_signs(values: Sequence[float], margins: Sequence[float]) -> tuple[int, int, int]:
    """How many values lie above, within and below their margins around zero.

    Example:
        >>> from metamae.report.comparison import count_signs
        >>> count_signs([0.5, -0.1, 0.0, 2.0], [0.2, 0.2, 0.2, 3.0])
        (1, 3, 0)
    """
    pairs = list(zip(values, margins, strict=True))
    above = sum(value > margin for value, margin in pairs)
    below = sum(value < -margin for value, margin in pairs)
    return above, len(pairs) - above - below, below


def pair_results(
    rows: Iterable[Result], method: str = "metamae", against: str = "mae"
) -> list[Paired]:
    """Differences on equal seeds and steps, wherever both methods have results.

    An untrained encoder has taken no steps and is compared with any number of them. A variant is
    compared with the same variant of the other method, or with its default where it has no such
    variant.

    Args:
        rows: The results.
        method: The first method.
        against: The second.
    """
    rows = list(rows)
    base = {(row.key, row.steps): row for row in rows if row.method == against}
    found: dict[tuple[str, str, str, str, str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row.method != method:
            continue
        keys = [row.key._replace(method=against, variant=name) for name in (row.variant, DEFAULT)]
        counts = (row.steps,) if row.steps else sorted({steps for _, steps in base})
        for count in counts:
            tries = [(key, steps) for key in keys for steps in (count, 0)]
            other = next((base[one] for one in tries if one in base), None)
            if other is not None:
                place = (row.dataset, row.transfer, row.variant, row.protocol, row.metric, count)
                found.setdefault(place, []).append((row.seed, row.value - other.value))
    pairs = [
        Paired(
            dataset=dataset,
            transfer=transfer,
            variant=variant,
            protocol=protocol,
            metric=metric,
            differences=tuple(_by_seed(differences).values()),
            steps=steps,
        )
        for (dataset, transfer, variant, protocol, metric, steps), differences in found.items()
    ]
    return sorted(pairs, key=_pair_order)


def _pair_order(pair: Paired) -> tuple[tuple[int, str], ...]:
    return (
        rank((DEFAULT,), pair.variant),
        rank(PROTOCOLS, pair.protocol),
        rank(POCKET, pair.dataset),
        rank(POCKET, pair.transfer),
        (pair.steps, ""),
    )
