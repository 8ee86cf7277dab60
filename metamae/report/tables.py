"""A report as sections: tables with a title and notes, for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metamae.config.names import known_methods
from metamae.evaluation.protocols import PROTOCOLS
from metamae.report.comparison import (
    Paired,
    Summary,
    average_over_sets,
    count_signs,
    has_news,
    news_note,
    pair_results,
    rank,
    summarise_results,
)
from metamae.report.published import MARKS, STAND_INS, Published, look_up
from metamae.report.rows import DEFAULT, Result
from metamae.report.wording import (
    describe_metric,
    describe_pairs,
    describe_place,
    label,
    number,
    show,
    show_published,
    with_spread,
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of a report.

    Attributes:
        title: Its heading.
        header: Names of the columns.
        lines: Cells as text.
        notes: Sentences below it.
    """

    title: str
    header: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """Print it as a table."""
        table = Table(
            title=f"\n{self.title}", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
        )
        for place, name in enumerate(self.header):
            numbers = all(re.match(r"[-+\d]", line[place]) for line in self.lines)
            table.add_column(
                name,
                overflow="fold",
                no_wrap=numbers or place == 0,
                justify="right" if numbers else "left",
            )
        for line in self.lines:
            table.add_row(*line)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)

    def markdown(self) -> str:
        """It as Markdown."""
        rows = [self.header, ("---",) * len(self.header), *self.lines]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"## {self.title}\n\n{table}\n{notes}"


def make_report(
    rows: Sequence[Result], *, method: str = "metamae", against: str = "mae"
) -> list[Section]:
    """All sections: one per (data set, transfer), the paired differences, and where it all ran.

    Args:
        rows: The results.
        method: Method whose differences are shown,
        against: to this one.
    """
    lines = summarise_results(rows)
    places = dict.fromkeys((line.dataset, line.transfer) for line in lines)
    sections = [
        _place(*place, [x for x in lines if (x.dataset, x.transfer) == place]) for place in places
    ]
    sections += _overall(rows)
    pairs = pair_results(rows, method, against)
    if pairs:
        sections += [_pairs(pairs, method, against), *_verdicts(pairs, method, against)]
    return [*sections, _protocols(rows), _machines(rows)]


def _place(dataset: str, transfer: str, lines: Sequence[Summary]) -> Section:
    """Methods down, protocols across, the paper's number last."""
    protocols = sorted({line.protocol for line in lines}, key=lambda name: rank(PROTOCOLS, name))
    groups: dict[tuple[str, str, int], dict[str, Summary]] = {}
    for line in lines:
        groups.setdefault((line.method, line.variant, line.steps), {})[line.protocol] = line
    paper = {group: look_up(dataset, transfer, *group[:2]) for group in groups}
    stand_in = (dataset, transfer) in STAND_INS
    column = "paper, full data" if stand_in else "paper"
    return Section(
        title=f"{describe_place(dataset, transfer)}: {describe_metric(lines[0].metric)}",
        header=("method", *protocols, "seeds", "steps", "seconds", column),
        lines=[
            (
                label(method, variant),
                *(show(by_protocol[name]) if name in by_protocol else "-" for name in protocols),
                str(max(line.seeds for line in by_protocol.values())),
                str(steps),
                f"{next(iter(by_protocol.values())).seconds:.1f}" if steps else "-",
                show_published(paper[method, variant, steps]),
            )
            for (method, variant, steps), by_protocol in groups.items()
        ],
        notes=_paper_notes(
            dataset, transfer, [x for by_protocol in paper.values() for x in by_protocol]
        ),
    )


def _paper_notes(dataset: str, transfer: str, numbers: Sequence[Published]) -> list[str]:
    if not numbers:
        return []
    full = " -> ".join(dict.fromkeys((numbers[0].dataset, numbers[0].transfer)))
    note = f"Paper: published linear probe on {full}, 100,000 steps; no spread is given."
    if (dataset, transfer) in STAND_INS:
        note += f" {transfer} is small other data of its kind, so the two are not comparable."
    return [note + _marks_note(numbers)]


def _marks_note(numbers: Sequence[Published]) -> str:
    used = {number.mark for number in numbers}
    return "".join(f" {mark} is {text}." for mark, text in MARKS.items() if mark in used)


def _overall(rows: Sequence[Result]) -> list[Section]:
    """Every method over the data sets that all of them were run on."""
    averages, names = average_over_sets(rows)
    if len(names) < 2:
        return []
    protocols = sorted(
        {average.protocol for average in averages}, key=lambda name: rank(PROTOCOLS, name)
    )
    methods = sorted(
        {average.method for average in averages}, key=lambda name: rank(known_methods(), name)
    )
    shown = {
        (average.method, average.protocol): with_spread(average.mean, average.spread, "accuracy")
        for average in averages
    }
    return [
        Section(
            title=f"Mean over {len(names)} data sets, %",
            header=("method", *protocols),
            lines=[
                (label(name, DEFAULT), *(shown[name, protocol] for protocol in protocols))
                for name in methods
            ],
            notes=[
                f"Over {', '.join(names)}: what every method was run on, with equal seeds.",
                *news_note(row.dataset for row in rows),
            ],
        )
    ]


def _pairs(pairs: Sequence[Paired], method: str, against: str) -> Section:
    return Section(
        title=f"{label(method, DEFAULT)} minus {label(against, DEFAULT)}, seed by seed",
        header=("data", "variant", "protocol", "mean ± error", "wins", "ties", "losses", "verdict"),
        lines=[
            (
                place,
                pair.variant,
                pair.protocol,
                _difference(pair),
                *map(str, pair.counts),
                pair.verdict,
            )
            for pair, place in zip(pairs, describe_pairs(pairs), strict=True)
        ],
        notes=["Verdict: a mean difference above one standard error over seeds, else a tie."],
    )


def _difference(pair: Paired) -> str:
    return with_spread(pair.mean, pair.error, pair.metric, sign=True)


def _verdicts(pairs: Sequence[Paired], method: str, against: str) -> list[Section]:
    """Per variant and protocol over all places that belong in an average."""
    groups: dict[tuple[str, str], list[Paired]] = {}
    for pair in pairs:
        if has_news(pair.dataset, pair.transfer):
            groups.setdefault((pair.variant, pair.protocol), []).append(pair)
    if not groups:
        return []
    lines = []
    for (variant, protocol), group in groups.items():
        percent = [pair.mean for pair in group if pair.metric != "spearman"]
        verdicts = [pair.verdict for pair in group]
        seeds = [value for pair in group for value in pair.differences]
        by_seed = count_signs(seeds, [0.0] * len(seeds))
        mean = number(sum(percent) / len(percent), "accuracy", sign=True) if percent else "-"
        lines.append(
            (
                variant,
                protocol,
                mean,
                *(str(verdicts.count(verdict)) for verdict in ("win", "tie", "loss")),
                "/".join(map(str, by_seed)),
            )
        )
    return [
        Section(
            title=f"{label(method, DEFAULT)} against {label(against, DEFAULT)}, over data sets",
            header=("variant", "protocol", "mean", "wins", "ties", "losses", "seeds w/t/l"),
            lines=lines,
            notes=news_note(name for pair in pairs for name in (pair.dataset, pair.transfer)),
        )
    ]


def _protocols(rows: Sequence[Result]) -> Section:
    pairs = dict.fromkeys((row.protocol, row.settings) for row in rows)
    lines = sorted(pairs, key=lambda pair: (rank(PROTOCOLS, pair[0]), pair[1]))
    return Section(
        title="Protocols",
        header=("protocol", "settings"),
        lines=lines,
        notes=[
            "± is the sample deviation over seeds; in brackets, over draws of labels where there "
            "is one seed. Published: the last epoch, never the best on test rows."
        ],
    )


def _machines(rows: Sequence[Result]) -> Section:
    machines = dict.fromkeys((row.hardware, row.torch, row.revision) for row in rows)
    return Section(title="Where", header=("hardware", "torch", "revision"), lines=list(machines))


def summarise(
    rows: Sequence[Result], times: Mapping[str, Mapping[str, float]] | None = None
) -> Section:
    """Mean and spread over seeds per data set and method: the table that a demo ends with.

    Args:
        rows: The results.
        times: Milliseconds a step by data set and method, measured side by side
            (:func:`metamae.experiments.timing.time_steps`); the last column is the ratio to MAE's.
            Runs that shared a machine have no times of their own worth comparing.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.method), []).append(row)
    lines = []
    for (dataset, method), group in groups.items():
        (line,) = summarise_results(group)
        own = (times or {}).get(dataset, {})
        lines.append(
            (
                dataset,
                label(method, DEFAULT),
                describe_metric(line.metric),
                show(line),
                str(line.seeds),
                str(line.steps),
                f"{own[method]:.1f}" if method in own else "-",
                f"{own[method] / own['mae']:.2f}" if method in own and "mae" in own else "-",
            )
        )
    return Section(
        title="Linear probe on frozen features, test rows",
        header=(
            *("data set", "method", "metric", "mean ± std"),
            *("seeds", "steps", "ms a step", "× MAE"),
        ),
        lines=lines,
        notes=["A step is timed with each method in turn, before the runs."] if times else [],
    )
