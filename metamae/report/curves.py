"""Curves over training: the loss, and settings that are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metamae.errors import DataError
from metamae.report.rows import DEFAULT
from metamae.report.style import SERIES, look_of, styled
from metamae.report.wording import label
from metamae.training.bilevel import PREFIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled()
def draw_curves(
    histories: Mapping[str, Sequence[Mapping[str, list[list[float]]]]], path: Path
) -> None:
    """Draw training losses per method, and MetaMAE's support loss around the inner step.

    Losses on masked tokens share a panel. Methods with another loss get a panel of their own,
    where each loss is divided by its first value: they have no scale in common.

    Args:
        histories: Method name to one history per seed (name -> list of ``[step, value]``).
        path: PNG file to write.
    """
    others = not all("query" in run for runs in histories.values() for run in runs)
    panels = 3 if others else 2
    from matplotlib.figure import Figure  # takes a second: commands start without it

    figure = Figure(figsize=(5.5 * panels, 3.8))
    left, *middle, right = figure.subplots(1, panels)
    for method, runs in histories.items():
        colour, name = look_of(method)[0], label(method, DEFAULT)
        if all("query" in run for run in runs):
            _draw_series(left, [run["query"] for run in runs], colour, name)
        else:
            relative = [_relative(run["loss"]) for run in runs]
            _draw_series(middle[0], relative, colour, name)
        if all("support_before" in run for run in runs):
            before, after = (
                [run[f"support_{side}"] for run in runs] for side in ("before", "after")
            )
            _draw_series(right, before, SERIES[0], "before the inner step")
            _draw_series(right, after, SERIES[1], "after it")
            gains = [100 * (1 - a[-1][1] / b[-1][1]) for b, a in zip(before, after, strict=True)]
            right.set_title(f"support loss (last reduction {np.mean(gains):.2g} %)")
    left.set_title("loss on masked tokens")
    for axis in middle:
        axis.set_title("other losses, relative to their first value")
    for axis in (left, *middle, right):
        axis.set_xlabel("step")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
        else:
            axis.text(0.5, 0.5, "nothing to show", ha="center", transform=axis.transAxes)
    figure.savefig(path)


def _relative(points: list[list[float]]) -> list[list[float]]:
    first = points[0][1] or 1.0
    return [[step, value / first] for step, value in points]


def _draw_series(axis: Axes, runs: Sequence[list[list[float]]], colour: str, label: str) -> None:
    """One thin line a seed, and their running mean over the steps that all have logged."""
    for run in runs:
        axis.plot(*np.array(run).T, color=colour, lw=0.8, alpha=0.35)
    levels = [{point[0]: point[1] for point in run} for run in runs]
    steps = sorted(set(levels[0]).intersection(*levels[1:]))
    if not steps:
        return
    mean = np.array([[level[step] for step in steps] for level in levels]).mean(0)
    width = max(1, len(steps) // 15)
    padded = np.pad(mean, (width - 1, 0), mode="edge")
    smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
    axis.plot(steps, smooth, color=colour, label=label)


History = Mapping[str, list[list[float]]]


SHARES = ("nearby_ratio", "mask_ratio")


@styled()
def draw_settings(histories: Mapping[str, Sequence[History]], path: Path) -> None:
    """Draw one panel per learned setting and one for the reference loss.

    Args:
        histories: Label (a data set, for instance) to one history per seed.
        path: PNG file to write.

    Raises:
        DataError: histories without learned settings.
    """
    runs = [run for group in histories.values() for run in group]
    names = [key for key in (runs[0] if runs else {}) if key.startswith(PREFIX)]
    if not names or any(name not in run for run in runs for name in names):
        raise DataError(
            "expected histories of runs that learned the same settings, got others; "
            "pretrain with learn.settings"
        )
    panels = [*names, "reference"]
    from matplotlib.figure import Figure  # takes a second: commands start without it

    figure = Figure(figsize=(3.4 * len(panels), 3.2))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, name in zip(grid, panels, strict=True):
        for number, (name_of_group, group) in enumerate(histories.items()):
            colour = SERIES[number % len(SERIES)]
            for seed, run in enumerate(run for run in group if name in run):
                points = np.array(run[name])
                axis.plot(*points.T, color=colour, label=name_of_group if seed == 0 else None)
        short = name.removeprefix(PREFIX)
        axis.set_title("reference loss" if name == "reference" else short.replace("_", " "))
        axis.set_xlabel("step")
        if short in SHARES:
            axis.set_ylim(0, 1)
        else:
            axis.set_yscale("log")
    if grid[0].get_legend_handles_labels()[0] and len(histories) > 1:
        grid[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
