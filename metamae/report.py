"""The table a run ends with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from metamae.results import Result

LABELS = {
    "random": "random init",
    "emix": "e-Mix",
    "shed": "ShED",
    "capri": "Capri",
    "mae_linear": "MAE (linear)",
    "mae": "MAE (deep)",
    "metamae": "MetaMAE",
    "supervised": "supervised",
}


def summarise(rows: Sequence[Result]) -> Table:
    """Table of mean and spread over seeds per data set and method.

    The overhead is the ratio of pretraining times to MAE's on the same seeds: the median over
    seeds, which one disturbed run does not move.
    """
    table = Table(title="Linear probe on frozen features, test rows", title_justify="left")
    for name in ("data set", "method", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("mean ± std", "seeds", "steps", "pretrain s", "× MAE"):
        table.add_column(name, justify="right", overflow="fold")
    for cells in summary_cells(rows):
        table.add_row(*cells)
    return table


def summary_cells(rows: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table's cells as text, one tuple per (data set, method)."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.method), []).append(row)
    cells: list[tuple[str, ...]] = []
    for (dataset, method), group in groups.items():
        seconds = statistics.mean(row.pretrain_seconds for row in group)
        cells.append(
            (
                dataset,
                LABELS[method],
                group[0].metric.replace("_", " "),
                mean_and_spread([row.value for row in group]),
                str(len(group)),
                str(group[0].steps),
                f"{seconds:.1f}" if group[0].steps else "-",
                _overhead(group, groups.get((dataset, "mae"), [])),
            )
        )
    return cells


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample deviation in percent; no deviation is claimed from one value.

    Example:
        >>> from metamae.report import mean_and_spread
        >>> mean_and_spread([0.5, 0.6]), mean_and_spread([0.5])
        ('55.0 ± 7.1', '50.0')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _overhead(group: Sequence[Result], mae: Sequence[Result]) -> str:
    base = {row.seed: row.pretrain_seconds for row in mae if row.steps}
    ratios = [row.pretrain_seconds / base[row.seed] for row in group if base.get(row.seed)]
    if not ratios or not group[0].steps:
        return "-"
    return f"{statistics.median(ratios):.2f}"
