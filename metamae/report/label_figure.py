"""The figure of a comparison: accuracy against numbers of labels, a colour for each candidate."""

from __future__ import annotations

from pathlib import Path

from metamae.evaluation.drawing import Stage
from metamae.files import replacing
from metamae.report.label_curves import Curves, interval
from metamae.report.style import look_of, styled
from metamae.report.wording import describe_metric


@styled()
def draw_label_curves(curves: Curves, path: Path, *, stage: Stage = "test") -> None:
    """Draw means over draws and seeds, and their 95 % intervals as bands.

    The number of labels is on a logarithmic axis; the last point is all labels.

    Args:
        curves: What was measured.
        path: Picture to write; the format is that of its ending.
        stage: On test rows or on validation cuts.
    """
    from matplotlib.figure import Figure  # takes a second: commands start without it

    figure = Figure(figsize=(10, 6.4))
    axis = figure.subplots()
    places = [curves.place(number) for number in curves.numbers]
    scale = 1 if curves.metric == "spearman" else 100
    for name, title in curves.titles.items():
        colour, marker, line = look_of(name)
        points = [interval(curves.values[stage, name][number]) for number in curves.numbers]
        low, high = ([scale * point[side] for point in points] for side in (1, 2))
        axis.fill_between(places, low, high, color=colour, alpha=0.13, lw=0)
        wide = 3.0 if name in curves.pretrained else 1.8
        means = [scale * point.value for point in points]
        axis.plot(
            places,
            means,
            line,
            color=colour,
            marker=marker,
            ms=11 if marker == "*" else 7,
            lw=wide,
            label=title,
        )
    if stage == "test" and curves.commonest is not None:
        level = scale * curves.commonest
        axis.axhline(level, color="#999999", lw=1.2, ls=(0, (2, 3)), label="commonest class")
    axis.set_xscale("log")
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_minor_locator(NullLocator())
    names = [str(number) for number in curves.numbers[:-1]]
    axis.set_xticklabels([*names, f"all\n({curves.all_labels:.0f})"])
    axis.set_xlabel("labels a class" if curves.by_class else "labels")
    axis.set_ylabel(describe_metric(curves.metric))
    where = "test rows" if stage == "test" else "validation cuts of the training rows"
    axis.set_title(f"{describe_metric(curves.metric)}, {where}")
    figure.legend(loc="outside lower center", ncols=3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))
