"""From the rows of the proof to its page and its figure.

python benchmarks/proof_page.py  # benchmarks/results/proof.md and docs/labels.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from proof import (
    BASELINES,
    DEAR,
    EARLIER,
    FEW,
    HELD_BACK,
    PART_SETS,
    PARTS,
    PREDICTIONS,
    RESULTS,
    SETS,
    STEPS,
    TUNE_STEPS,
    VARIANTS,
    trial,
)
from proof_values import (
    Values,
    difference,
    grouped,
    holm,
    over_sets,
    pooling,
    read_values,
    shared_kinds,
)

from metamae.files import read_json, write_text
from metamae.report.intervals import student_margin
from metamae.report.style import look_of, styled

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "labels.png"
TITLES = {
    "raw_logistic": "raw + logistic",
    "raw_neighbours": "raw + neighbours",
    "components": "PCA + logistic",
    "field": "features by hand",
    "raw_boosting": "gradient boosting",
    "scratch": "from scratch",
    "random": "untrained encoder",
    "mae": "MAE",
    "umae": "U-MAE",
    "metamae": "MetaMAE",
    "with the contrast": "MetaMAE with the contrast",
    "random, published contents": "untrained encoder, published contents",
    "mae, published contents": "MAE, published contents",
    "umae, published contents": "U-MAE, published contents",
    "metamae, published contents": "MetaMAE, published contents",
}
RIVALS = ("random", "raw_logistic", "components", "mae", "umae")
KINDS = ("mean", "all tokens", "joined")
"""Of features of an encoder."""
NOW: Mapping[str, str] = {name: name for name in VARIANTS}
"""Names of the encoders' rows."""
BEFORE: Mapping[str, str] = dict(zip(VARIANTS, EARLIER, strict=True))
"""The same with contents as they are published, the preset before."""
DRAWN = ("raw_logistic", "field", "random", "mae", "umae", "metamae")


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = (header, ("---",) * len(header), *lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def mean_text(values: Values, dataset: str, variant: str, labels: str) -> str:
    """Mean over seeds, and their deviation where there are several."""
    found = [v[labels] for v in values.get((dataset, variant), {}).values() if labels in v]
    if not found:
        return "-"
    spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
    return f"{np.mean(found):.1f}{spread}"


def accuracy_table(
    values: Values, sets: Sequence[str], labels: str, encoders: Mapping[str, str] = NOW
) -> str:
    """Every variant's accuracy on every set."""
    rows = {name: name for name in (*BASELINES, *DEAR)} | dict(encoders)
    shown = {n: row for n, row in rows.items() if any((s, row) in values for s in sets)}
    lines = [
        [TITLES[n], *(mean_text(values, s, row, labels) for s in sets)] for n, row in shown.items()
    ]
    return table(("", *sets), lines)


def mean_table(values: Values, sets: Sequence[str], encoders: Mapping[str, str] = NOW) -> str:
    """Means over the sets of what stands on all of them."""
    lines = []
    rows = {name: name for name in ("raw_logistic", "components")} | dict(encoders)
    for name, row in rows.items():
        means = []
        for labels in (str(FEW), "all"):
            found = [[v[labels] for v in values.get((s, row), {}).values()] for s in sets]
            means.append(f"{np.mean([np.mean(f) for f in found]):.1f}" if all(found) else "-")
        lines.append([TITLES[name], *means])
    return table((f"mean of {len(sets)} sets", f"{FEW} labels a class", "all labels"), lines)


def rival_table(values: Values, sets: Sequence[str], encoders: Mapping[str, str] = NOW) -> str:
    """MetaMAE minus each rival."""
    lines, ours = [], encoders["metamae"]
    for labels in (str(FEW), "all"):
        for rival in RIVALS:
            theirs = encoders.get(rival, rival)
            each = [difference(values, s, ours, theirs, labels) for s in sets]
            words = holm(each)
            mean = over_sets(values, sets, ours, theirs, labels)
            cells = [
                "-" if d is None else d.text() + (f", {word}" if word in ("win", "loss") else "")
                for d, word in zip(each, words, strict=True)
            ]
            counts = "/".join(str(words.count(w)) for w in ("win", "tie", "loss"))
            name = f"{TITLES[rival]}, {'all' if labels == 'all' else labels + ' a class'}"
            lines.append([name, *cells, "-" if mean is None else mean.text(), counts])
    return table(("MetaMAE minus", *sets, "mean", "win/tie/loss"), lines)


def part_table(values: Values, sets: Sequence[str]) -> str:
    """Every part beside MAE, and MetaMAE beside MAE, all with contents as they are published."""
    lines, beside = [], BEFORE["mae"]
    for name in PARTS:
        cells = []
        for labels in (str(FEW), "all"):
            for dataset in sets:
                d = None if name == beside else difference(values, dataset, name, beside, labels)
                cells.append("-" if d is None else d.text())
        if set(cells) != {"-"}:
            lines.append([TITLES.get(name, name), *cells])
    header = [f"{s}, {n}" for n in (f"{FEW} a class", "all") for s in sets]
    return table((f"minus {TITLES[beside]}", *header), lines)


def contrast_table(rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> str:
    """MetaMAE with its contrast and without, on validation cuts, of the seeds that all have."""
    return cuts_table(rows, sets, (BEFORE["mae"], BEFORE["metamae"], "with the contrast"))


def contents_table(rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> str:
    """Contents as published and as large as positions, in the same way."""
    names = [name for pair in BEFORE.items() for name in reversed(pair)]
    return cuts_table(rows, sets, names)


def cuts_table(rows: Sequence[Mapping[str, Any]], sets: Sequence[str], names: Sequence[str]) -> str:
    """Variants on validation cuts, few labels, of the seeds that all of them have."""
    found = grouped(rows)
    lines = [[title] for title in (*(TITLES.get(name, name) for name in names), "seeds")]
    for dataset in sets:
        of_seed = [{r["seed"]: r for r in found.get((dataset, name), ())} for name in names]
        shared = set.intersection(*(set(rows) for rows in of_seed))
        for line, by_seed in zip(lines, of_seed, strict=False):
            kinds = [
                [np.mean(by_seed[s]["validation"][kind][str(FEW)]) for s in shared]
                for kind in ("mean", "tokens")
            ]
            line.append(f"{100 * max(map(np.mean, kinds)):.1f}" if shared else "-")
        lines[-1].append(str(len(shared)))
    return table((f"validation cuts, {FEW} labels a class", *sets), lines)


def auto_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rate and ratio of now and of before, on validation cuts: the mean of tokens, and all."""
    lines = []
    for row in rows:
        if row["stage"] == "auto":
            method, _, setting = row["variant"].partition(", ")
            kinds = [row.get(kind) for kind in ("values", "tokens", "joined")]
            cells = [
                f"{100 * np.mean(kind[n]):.1f}" if kind else "-"
                for kind in kinds
                for n in (str(FEW), "all")
            ]
            lines.append([row["dataset"], setting or "-", TITLES[method], *cells])
    heads = [f"{kind}, {n}" for kind in KINDS for n in (f"{FEW} a class", "all")]
    lines.sort(key=lambda line: (line[0], line[1], list(TITLES.values()).index(line[2])))
    return table(("", "rate, masked", "", *heads), lines)


def tune_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every trial on validation cuts; its settings are those of the program."""
    lines = []
    for row in rows:
        if row["stage"] == "tune":
            method, number = row["variant"].split()
            few = [
                f"{100 * np.mean(row[kind][str(FEW)]):.1f}" if kind in row else "-"
                for kind in ("values", "tokens")
            ]
            told = "; ".join(trial(row["dataset"], method, int(number)))
            lines.append([row["dataset"], TITLES[method], told, *few])
    return table(("", "", "settings", "mean", "all tokens"), lines)


def pooling_table(
    rows: Sequence[Mapping[str, Any]], sets: Sequence[str], encoders: Mapping[str, str] = NOW
) -> str:
    """What became of every encoder's tokens, with few labels and with all."""
    found = grouped(rows)
    words = dict(zip(("values", "tokens", "joined"), KINDS, strict=True))
    lines = [
        [
            TITLES[name],
            *(
                ", ".join(
                    words[pooling(found[s, row], n, shared_kinds(found, s, row))]
                    for n in (str(FEW), "all")
                )
                if (s, row) in found
                else "-"
                for s in sets
            ),
        ]
        for name, row in encoders.items()
    ]
    return table(("", *sets), lines)


def sets_of(values: Values, among: Sequence[str], encoders: Mapping[str, str] = NOW) -> list[str]:
    """Those of which every variant has a seed."""
    return [s for s in among if all((s, row) in values for row in encoders.values())]


def accuracies(values: Values, sets: Sequence[str], encoders: Mapping[str, str] = NOW) -> str:
    """Tables of accuracy, set by set and on average."""
    several = f"\n\n{mean_table(values, sets, encoders)}" if len(sets) > 1 else ""
    return f"""With {FEW} labels a class, mean and deviation over seeds:

{accuracy_table(values, sets, str(FEW), encoders)}

With all labels:

{accuracy_table(values, sets, "all", encoders)}{several}"""


def kept_back_section(
    rows: Sequence[Mapping[str, Any]], values: Values, sets: Sequence[str]
) -> str:
    """Accuracy on sets that decided nothing."""
    return f"""## Sets on which nothing was chosen

The preset's rate and ratio were chosen on validation cuts of the sets above. These were kept back;
measured with contents as they are published, the preset before:

{accuracies(values, sets, BEFORE)}

{pooling_table(rows, sets, BEFORE)}

{rival_table(values, sets, BEFORE)}

"""


def make_page(report: Mapping[str, Any]) -> str:
    """The page."""
    rows = report["rows"]
    values = read_values(rows)
    sets, held_back = sets_of(values, SETS), sets_of(values, HELD_BACK, BEFORE)
    told = ", ".join(f"{s} {len(values[s, 'metamae'])}" for s in sets)
    machines = sorted({f"{r['hardware']}, torch {r['torch']}" for r in rows})
    revisions = ", ".join(sorted({r["revision"] for r in rows}))
    kept_back = kept_back_section(rows, values, held_back) if held_back else ""
    predictions = "\n".join(f"{n}. {text}" for n, text in enumerate(PREDICTIONS, start=1))
    return f"""# Does pretraining save labels, and what in it does the work?

Test accuracy in percent, of logistic regression on frozen standardised features; 20 draws of
labels, the same for every method. Encoders: the preset `auto`, {STEPS} steps, one setting for all
data and methods. Seeds of pretraining: {told}.
Made by `benchmarks/proof_page.py` from [rows](proof.json), which `benchmarks/proof.py` measured.

## Accuracy

{accuracies(values, sets)}

Of an encoder's tokens the mean is taken, or up to 64 principal components of all of them, or these
beside as many of the inputs, what is best on validation cuts of training rows; with few labels and
with all:

{pooling_table(rows, sets)}

## MetaMAE beside its rivals

{rival_table(values, sets)}

Mean paired difference over seeds with Student's 95 % interval; draws of labels are shared, so
that their spread is not in it, nor that of the test rows. A win or a loss is one by a t test at
5 % after Holm's correction over the sets.

{kept_back}## What in it does the work

{part_table(values, sets_of(values, PART_SETS, BEFORE))}

The same setting but for what is named, all with contents as they are published; paired with MAE,
seed by seed. What decides is this:

{contrast_table(rows, sets)}

Embedded contents as published, and brought to the norm of positions
(`encoder.content_scale=positions`), which is the preset for real numbers since:

{contents_table(rows, sets)}

## What the preset's rate and ratio do

{auto_table(rows)}

Validation cuts of training rows, {STEPS} steps, one seed (100), contents as published; "all tokens"
are up to 64 principal components of the features of all of them side by side, "joined" these beside
as many of the inputs.

## Trials

{tune_table(rows)}

Validation cuts, {FEW} labels a class, {TUNE_STEPS} steps, one seed, contents as published.
Unfinished where a method has fewer than five; no method's best trial was taken to test rows yet.

## What was expected

Written into the program before the first cell ran:

{predictions}

## How it was measured

{len(rows)} cells, a thread each, side by side with other work, on {"; ".join(machines)}. Revisions:
{revisions}.
"""


@styled()
def draw(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy against labels a class, a panel a set, with the :func:`_band` over seeds."""
    values = read_values(report["rows"])
    sets = sets_of(values, SETS)
    figure = Figure(figsize=(4 * len(sets), 5.2))
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, dataset in zip(axes, sets, strict=True):
        for name in DRAWN:
            runs = list(values.get((dataset, name), {}).values())
            if not runs:
                continue
            numbers = [n for n in runs[0] if n != "all"]
            ticks = [float(n) for n in numbers] + [3 * float(numbers[-1])]
            points = np.array([[run[n] for n in (*numbers, "all")] for run in runs])
            colour, marker, line = look_of(name)
            mean, bold = points.mean(0), name == "metamae"
            axis.fill_between(ticks, *_band(points), color=colour, alpha=0.12, lw=0)
            style = {"lw": 3.0 if bold else 2.0, "ms": 12 if bold else 7}
            axis.plot(ticks, mean, line, color=colour, marker=marker, label=TITLES[name], **style)
        axis.set_xscale("log")
        names = [f"{int(n) // 1000}k" if int(n) >= 1000 else n for n in numbers]
        axis.set_xticks(ticks, [*names, "all"], rotation=60 if len(names) > 8 else 0)
        axis.minorticks_off()
        axis.set_title(dataset.replace("_spatial", ""))
        axis.set_xlabel("labels a class")
        # An untrained encoder's first points may lie far below: the room is for the others.
    axes[0].set_ylabel("test accuracy, %")
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6)
    figure.savefig(path)


def _band(points: Any) -> tuple[Any, Any]:
    """Ends of 95 % intervals over seeds, the rows of ``points``; of two seeds, their range."""
    if len(points) < 3:
        return points.min(0), points.max(0)
    mean, error = points.mean(0), points.std(0, ddof=1) / len(points) ** 0.5
    half = np.array([student_margin(float(e), len(points)) for e in error])
    return mean - half, mean + half


def main() -> None:
    """Write both."""
    report = read_json(RESULTS)
    write_text(RESULTS.with_suffix(".md"), make_page(report))
    draw(report, PICTURE)


if __name__ == "__main__":
    main()
