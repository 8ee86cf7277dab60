"""The figure of a report: every place a panel, every protocol a column, every method a colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metamae.evaluation.protocols import PROTOCOLS
from metamae.report.comparison import Summary, rank, summarise_results
from metamae.report.published import STAND_INS, look_up
from metamae.report.rows import Result
from metamae.report.style import look_of, styled
from metamae.report.wording import label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Of the variants of a method, which share its colour."""

Series = tuple[str, str, int]
"""Method, variant, and steps where one place has several numbers of them (0 elsewhere)."""


@styled({"axes.grid.axis": "y"})
def draw_report(rows: Sequence[Result], path: Path) -> None:
    """Draw means and deviations over seeds, and the paper's numbers as hollow diamonds.

    Args:
        rows: The results.
        path: Picture to write; the format is that of its ending.
    """
    lines = summarise_results(rows)
    places = list(dict.fromkeys((line.dataset, line.transfer) for line in lines))
    several = _several_steps(lines)
    series = list(dict.fromkeys(_series(line, several) for line in lines))
    across = min(3, len(places))
    down = -(-len(places) // across)
    from matplotlib.figure import Figure  # takes a second: commands start without it

    figure = Figure(figsize=(max(9, 5 * across), 3.4 * down + 1))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, place in zip(panels, places, strict=False):
        chosen = [line for line in lines if (line.dataset, line.transfer) == place]
        _draw_place(axis, place, chosen, series, several)
    for axis in panels[len(places) :]:
        axis.set_axis_off()
    handles: dict[str, Artist] = {}
    for axis in figure.axes:
        artists, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, artists, strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _several_steps(lines: Sequence[Summary]) -> bool:
    """Whether a method has results after different numbers of steps in one place."""
    runs = {(line.dataset, line.transfer, line.method, line.variant, line.steps) for line in lines}
    return len({run[:4] for run in runs}) < len(runs)


def _series(line: Summary, several: bool) -> Series:
    return (line.method, line.variant, line.steps if several else 0)


def _draw_place(
    axis: Axes,
    place: tuple[str, str],
    lines: Sequence[Summary],
    series: Sequence[Series],
    several: bool,
) -> None:
    protocols = sorted({line.protocol for line in lines}, key=lambda name: rank(PROTOCOLS, name))
    scale = 1 if lines[0].metric == "spearman" else 100
    for number, one in enumerate(series):
        chosen = [line for line in lines if _series(line, several) == one]
        if not chosen:
            continue
        shift = 0.7 * ((number + 0.5) / len(series) - 0.5)
        places = [protocols.index(line.protocol) + shift for line in chosen]
        colour = look_of(one[0])[0]
        marker = MARKERS[sum(other[0] == one[0] for other in series[:number]) % len(MARKERS)]
        axis.errorbar(
            places,
            [scale * line.mean for line in chosen],
            [scale * (line.draws if line.spread is None else line.spread) for line in chosen],
            fmt=marker,
            color=colour,
            label=label(*one[:2]) + (f", {one[2]} steps" if several else ""),
        )
        _draw_paper(axis, place, one, protocols, shift, scale, colour)
    axis.set_xticks(range(len(protocols)), protocols, rotation=25)
    axis.set_title(" → ".join(dict.fromkeys(place)))
    axis.set_ylabel(lines[0].metric.replace("_", " ") + (", %" if scale == 100 else ""))


def _draw_paper(
    axis: Axes,
    place: tuple[str, str],
    series: Series,
    protocols: Sequence[str],
    shift: float,
    scale: float,
    colour: str,
) -> None:
    """Beside the published probe, which is what the paper used."""
    numbers = look_up(*place, *series[:2]) if "published" in protocols else ()
    name = "paper, full data" if place in STAND_INS else "paper"
    for published in numbers:
        axis.plot(
            protocols.index("published") + shift,
            scale * published.value,
            marker="D",
            ls="none",
            markerfacecolor="none",
            markeredgecolor=colour,
            label=name,
        )
