"""The picture of ``results/scaling-*.json``: every axis a column, time above memory.

python benchmarks/scaling_figure.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rows import RESULTS, Row

from metamae.report.style import SERIES, styled

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "scaling.png"
AXES = {
    "batch": "batch size",
    "tokens": "number of tokens",
    "depth": "decoder depth",
    "steps": "inner steps",
    "order": "order of the gradient",
    "policy": "gradient policy",
}
"""Axes and their titles, in the order of tables and picture."""


@styled()
def draw(results: Path = RESULTS, path: Path = PICTURE) -> None:
    """Draw every axis that was measured; one colour a device, MAE's memory dashed."""
    reports = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("scaling-*.json"))}
    known = {row["axis"] for report in reports.values() for row in report["rows"]}
    axes = [axis for axis in AXES if axis in known]
    if not axes:
        raise SystemExit(
            f"expected rows in {results}/scaling-*.json, found none; measure some: "
            "pytest benchmarks/ --benchmark -k scaling"
        )
    figure = Figure(figsize=(2.9 * len(axes) + 0.6, 6.6))
    widths = [1.5 if axis == "policy" else 1 for axis in axes]  # it has names to hold
    panels = figure.subplots(2, len(axes), squeeze=False, width_ratios=widths)
    for (name, report), colour in zip(reports.items(), SERIES, strict=False):
        device = f"{name.removeprefix('scaling-')}: {report['hardware']}"
        for axis, time, memory in zip(axes, *panels, strict=True):
            rows = [row for row in report["rows"] if row["axis"] == axis]
            if rows:
                _draw_axis(time, memory, rows, colour, device)
    for axis, time, memory in zip(axes, *panels, strict=True):
        time.set_title(AXES[axis])
        time.set_ylim(bottom=0)
        memory.set_yscale("log")
        memory.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        memory.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        memory.yaxis.set_minor_formatter(NullFormatter())
        memory.set_xlabel("" if axis == "policy" else axis)
    panels[0][0].set_ylabel("step, MetaMAE / MAE")
    panels[1][0].set_ylabel("peak MiB")
    handles, labels = panels[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_axis(time: Axes, memory: Axes, rows: Sequence[Row], colour: str, device: str) -> None:
    values = [row["value"] for row in rows]
    axis = rows[0]["axis"]
    named = axis in ("order", "policy")
    x = list(range(len(rows))) if named else values
    line = "" if named else "-"
    ratios, spreads = ([row[k] for row in rows] for k in ("ratio", "ratio_spread"))
    time.errorbar(x, ratios, spreads, fmt=f"o{line}", color=colour)
    for method, dashes, marker in (("mae", "--", "s"), ("metamae", "-", "o")):
        peaks = [row[f"{method}_peak_mib"] for row in rows]
        style = {"linestyle": dashes if line else "", "marker": marker, "color": colour}
        label = f"{'MAE' if method == 'mae' else 'MetaMAE'}, {device}"
        filled = colour if method == "metamae" else "white"
        memory.plot(x, peaks, label=label, markerfacecolor=filled, **style)
    for panel in (time, memory):
        if named:
            names = [str(value).replace("_", "\n") for value in values]
            turned = 90 if axis == "policy" else 0
            panel.set_xticks(x, names if panel is memory else [""] * len(x), rotation=turned)
            panel.set_xlim(-0.5, len(rows) - 0.5)
        else:
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


if __name__ == "__main__":
    draw()
