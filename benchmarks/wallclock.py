"""What the wall-clock benchmark makes of its rows: mean curves, a summary and the figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metamae.report.style import SERIES, look_of, styled
from metamae.report.wording import LABELS

Rows = Sequence[Mapping[str, Any]]
METHODS = ("mae", "metamae")
CLOCKS = {"wall": "seconds", "cpu": "cpu_seconds"}
LONGER = Fraction(8, 5)
"""MAE's steps over MetaMAE's, about what a step of MetaMAE costs: both curves then end together."""
POINTS, RANGE = 8, 32


class Curve(NamedTuple):
    """Means over seeds at every point; accuracies and their deviations in percent."""

    steps: list[int]
    seconds: list[float]
    values: list[float]
    spreads: list[float]


def points(method: str, steps: int) -> list[int]:
    """Steps at which a method is probed, when MetaMAE takes ``steps`` of them.

    None at first, then about equal ratios, the first 1 / RANGE of the last; the same shares of the
    whole for both methods.
    """
    ratios = [RANGE ** (number / (POINTS - 1) - 1) for number in range(POINTS)]
    shorter = sorted({0, *(max(1, round(steps * ratio)) for ratio in ratios)})
    return [math.ceil(LONGER * s) if method == "mae" else s for s in shorter]


def mean_curve(rows: Rows, dataset: str, method: str, clock: str) -> Curve:
    """Mean over seeds of seconds and of accuracy, point by point."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["dataset"], row["method"]) == (dataset, method):
            groups.setdefault(row["steps"], []).append(row)
    steps = sorted(groups)
    values = [[100 * row["value"] for row in groups[s]] for s in steps]
    return Curve(
        steps,
        [statistics.mean(row[CLOCKS[clock]] for row in groups[s]) for s in steps],
        [statistics.mean(group) for group in values],
        [deviation(group) for group in values],
    )


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def passing_time(
    seconds: Sequence[float], values: Sequence[float], level: float
) -> tuple[float, int] | None:
    """When a curve, straight between its points, first rises above a level.

    Returns:
        The time, and the number of the first point above; ``None`` where no point is above.
    """
    for number, value in enumerate(values):
        if value <= level:
            continue
        if number == 0:
            return seconds[0], 0
        low, start = values[number - 1], seconds[number - 1]
        share = (level - low) / (value - low)
        return start + share * (seconds[number] - start), number
    return None


def summarise(rows: Rows, dataset: str, clock: str) -> dict[str, Any]:
    """One data set by one clock: MAE's best mean, when MetaMAE's mean passes it, both ends."""
    mae, meta = (mean_curve(rows, dataset, method, clock) for method in METHODS)
    best = mae.values.index(max(mae.values))
    passed = passing_time(meta.seconds, meta.values, mae.values[best])
    later = [] if passed is None else meta.values[passed[1] :]
    return {
        "dataset": dataset,
        "clock": clock,
        "seeds": len({row["seed"] for row in rows if row["dataset"] == dataset}),
        "untrained": round(mae.values[0], 2),
        "mae_best": round(mae.values[best], 2),
        "mae_best_steps": mae.steps[best],
        "mae_best_s": round(mae.seconds[best], 2),
        "metamae_passes_s": None if passed is None else round(passed[0], 2),
        "points_above": sum(value > mae.values[best] for value in later),
        "points_from_there": len(later),
        "metamae_best": round(max(meta.values), 2),
        "mae_last": round(mae.values[-1], 2),
        "mae_last_spread": round(mae.spreads[-1], 2),
        "mae_last_s": round(mae.seconds[-1], 2),
        "metamae_last": round(meta.values[-1], 2),
        "metamae_last_spread": round(meta.spreads[-1], 2),
        "metamae_last_s": round(meta.seconds[-1], 2),
    }


def shown(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as a table shows it, shorter and in words."""
    last: dict[str, Any] = {}
    for method in METHODS:
        value, spread = summary[f"{method}_last"], summary[f"{method}_last_spread"]
        text = f"{value} ± {spread}" if summary["seeds"] > 1 else str(value)
        last |= {f"{method}_last": text, f"{method}_s": summary[f"{method}_last_s"]}
    kept = ("dataset", "clock", "seeds", "untrained", "mae_best", "mae_best_steps", "mae_best_s")
    passes = summary["metamae_passes_s"]
    measured = f"not within {summary['metamae_last_s']} s"
    return {key: summary[key] for key in kept} | {
        "metamae_passes_s": measured if passes is None else str(passes),
        "then_above": f"{summary['points_above']} of {summary['points_from_there']}",
        "metamae_best": summary["metamae_best"],
        **last,
    }


def table(rows: Rows, dataset: str) -> list[dict[str, Any]]:
    """One data set, a line per method and point: means, deviation and every seed's accuracy."""
    chosen = sorted((r for r in rows if r["dataset"] == dataset), key=lambda row: row["seed"])
    lines = []
    for method in METHODS:
        wall, cpu = (mean_curve(chosen, dataset, method, clock) for clock in CLOCKS)
        for number, steps in enumerate(wall.steps):
            here = [r for r in chosen if (r["method"], r["steps"]) == (method, steps)]
            lines.append(
                {
                    "method": LABELS[method],
                    "steps": steps,
                    "seconds": round(wall.seconds[number], 2),
                    "cpu_seconds": round(cpu.seconds[number], 2),
                    "mean": round(wall.values[number], 2),
                    "spread": round(wall.spreads[number], 2),
                }
                | {f"seed {row['seed']}": round(100 * row["value"], 2) for row in here}
            )
    return lines


@styled()
def draw(rows: Rows, clock: str, path: Path) -> None:
    """A panel per data set: mean and deviation against seconds, and the time of passing."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 5))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        draw_panel(axis, rows, name, clock)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_panel(axis: Axes, rows: Rows, dataset: str, clock: str) -> None:
    for method in METHODS:
        colour = look_of(method)[0]
        curve = mean_curve(rows, dataset, method, clock)
        low, high = (
            [v + sign * s for v, s in zip(curve.values, curve.spreads, strict=True)]
            for sign in (-1, 1)
        )
        axis.fill_between(curve.seconds, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(curve.seconds, curve.values, "o-", color=colour, label=LABELS[method])
    summary = summarise(rows, dataset, clock)
    best, passes = summary["mae_best"], summary["metamae_passes_s"]
    level = f"{best} %" + ("" if summary["mae_best_steps"] else " untrained")
    axis.axhline(best, color=look_of("mae")[0], lw=0.8, ls=":")
    if passes is None:
        outcome = f"does not pass MAE's best,\n{level}, within {summary['metamae_last_s']} s"
    else:
        axis.axvline(passes, color=SERIES[-1], lw=1.2, ls="--")
        outcome = f"passes MAE's best,\n{level}, at {passes} s"
    axis.set_title(f"{dataset}\nMetaMAE {outcome}")
    seeds = summary["seeds"]
    over = f"\nmean ± std of {seeds} seeds" if seeds > 1 else ""
    metric = next(row["metric"] for row in rows if row["dataset"] == dataset)
    axis.set_ylabel(f"{metric}, %")
    by = " by processor time" if clock == "cpu" else ""
    axis.set_xlabel(f"seconds of training{by}{over}")
