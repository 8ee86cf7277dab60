"""Result rows, and the table a run ends with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from metamae.checkpoint import write_json
from metamae.errors import DataError

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

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict[str, float]": dict}


def check_types(row: Any) -> None:
    """Raise ``TypeError`` unless a row's fields, which may come from a file, have their types."""
    for entry in fields(row):
        value, kind = getattr(row, entry.name), _TYPES[str(entry.type)]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"expected {entry.name} to be {entry.type}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one (data set, method, seed).

    Attributes:
        dataset: Data set name.
        method: Method name.
        seed: Seed of weights, data order, masks, dropout and probe.
        metric: Metric of the probe.
        value: Probe's test metric after the last epoch.
        best: Best epoch's test metric (chosen on test rows; never the number to report alone).
        train_value: Probe's metric on its own training rows.
        protocol: Which probe: the settings that matter.
        steps: Pretraining steps.
        pretrain_seconds: Time spent in them.
        probe_seconds: Time of features and probe.
        batch_size: Examples per step.
        device: Torch device type.
        hardware: Name of the processor or accelerator.
        torch: Torch version.
        revision: Source revision.
    """

    dataset: str
    method: str
    seed: int
    metric: str
    value: float
    best: float
    train_value: float
    protocol: str
    steps: int
    pretrain_seconds: float
    probe_seconds: float
    batch_size: int
    device: str
    hardware: str
    torch: str
    revision: str

    def __post_init__(self) -> None:
        """Check types, for rows come from files."""
        check_types(self)
        if self.method not in LABELS:
            raise TypeError(f"expected a method among {', '.join(LABELS)}, got {self.method!r}")

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies a row in a result file."""
        return (self.dataset, self.method, self.seed)


def read_rows(path: Path) -> list[Row]:
    """Rows of a result file; none if there is no file.

    Raises:
        DataError: a damaged file.
    """
    if not path.exists():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as fault:
        raise DataError(
            f"expected result rows in {path}, got a damaged file ({fault}); move it away"
        ) from fault


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a result file atomically."""
    write_json(path, [asdict(row) for row in rows])


def summarise(rows: Sequence[Row]) -> Table:
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


def summary_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table's cells as text, one tuple per (data set, method)."""
    groups: dict[tuple[str, str], list[Row]] = {}
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


def _overhead(group: Sequence[Row], mae: Sequence[Row]) -> str:
    base = {row.seed: row.pretrain_seconds for row in mae if row.steps}
    ratios = [row.pretrain_seconds / base[row.seed] for row in group if base.get(row.seed)]
    if not ratios or not group[0].steps:
        return "-"
    return f"{statistics.median(ratios):.2f}"
