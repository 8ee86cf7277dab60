"""A picture of learned settings over time, and of the reference loss that taught them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from metamae.bilevel import PREFIX
from metamae.errors import DataError
from metamae.figures import COLOURS

History = Mapping[str, list[list[float]]]
SHARES = ("nearby_ratio", "mask_ratio")


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
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, name in zip(grid, panels, strict=True):
        for number, (label, group) in enumerate(histories.items()):
            colour = COLOURS[number % len(COLOURS)]
            for seed, run in enumerate(run for run in group if name in run):
                points = np.array(run[name])
                axis.plot(*points.T, color=colour, lw=1.2, label=label if seed == 0 else None)
        short = name.removeprefix(PREFIX)
        axis.set_title("reference loss" if name == "reference" else short.replace("_", " "))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if short in SHARES:
            axis.set_ylim(0, 1)
        else:
            axis.set_yscale("log")
    if grid[0].get_legend_handles_labels()[0] and len(histories) > 1:
        grid[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
