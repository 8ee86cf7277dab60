"""From the rows of the proof to its page and its figure.

python benchmarks/proof_page.py  # benchmarks/results/proof.md and docs/labels.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from proof import (
    BASELINES,
    DEAR,
    FEW,
    PART_SETS,
    PARTS,
    PREDICTIONS,
    RESULTS,
    STEPS,
    TUNE_STEPS,
    VARIANTS,
    trial,
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
}
RIVALS = ("random", "raw_logistic", "mae", "umae")
DRAWN = ("raw_logistic", "field", "random", "mae", "umae", "metamae")

Values = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]
"""Data set and variant to seed to number of labels to the mean over draws, in points."""


class Difference(NamedTuple):
    """A paired difference over seeds, in points."""

    mean: float
    half: float | None
    """Half the 95 % interval; ``None`` from one seed."""
    p: float | None
    """Of the two-sided t test."""
    seeds: int

    def text(self) -> str:
        """As it stands in a table."""
        if self.half is None:
            return f"{self.mean:+.1f} (one seed)"
        return f"{self.mean:+.1f} ± {self.half:.1f}"


def read_values(rows: Sequence[Mapping[str, Any]], stage: str = "fixed") -> Values:
    """Means over draws, by cell."""
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for row in rows:
        if row["stage"] == stage:
            means = {n: 100 * float(np.mean(v)) for n, v in row["values"].items()}
            values.setdefault((row["dataset"], row["variant"]), {})[row["seed"]] = means
    return values


def difference(values: Values, dataset: str, a: str, b: str, labels: str) -> Difference | None:
    """Of two variants, seed by seed; what has no seed stands beside each."""
    first, second = values.get((dataset, a), {}), values.get((dataset, b), {})
    if b in (*BASELINES, *DEAR) and second:
        second = dict.fromkeys(first, second[0])
    shared = sorted(s for s in first if s in second and labels in first[s] and labels in second[s])
    return summarise([first[s][labels] - second[s][labels] for s in shared])


def summarise(differences: Sequence[float]) -> Difference | None:
    """Mean, interval and p of paired differences."""
    count = len(differences)
    if count == 0:
        return None
    mean = float(np.mean(differences))
    if count == 1:
        return Difference(mean, None, None, 1)
    from scipy.stats import t as student

    error = max(float(np.std(differences, ddof=1)) / count**0.5, 1e-9)
    p = 2 * float(student.sf(abs(mean) / error, count - 1))
    return Difference(mean, student_margin(error, count), p, count)


def over_sets(
    values: Values, sets: Sequence[str], a: str, b: str, labels: str
) -> Difference | None:
    """The mean over sets of a difference, seed by seed."""
    by_seed: dict[int, list[float]] = {}
    for dataset in sets:
        first, second = values.get((dataset, a), {}), values.get((dataset, b), {})
        if b in (*BASELINES, *DEAR) and second:
            second = dict.fromkeys(first, second[0])
        for seed in first:
            if seed in second and labels in first[seed] and labels in second[seed]:
                by_seed.setdefault(seed, []).append(first[seed][labels] - second[seed][labels])
    return summarise([float(np.mean(d)) for d in by_seed.values() if len(d) == len(sets)])


def holm(differences: Sequence[Difference | None]) -> list[str]:
    """Win, tie or loss of each at the 5 % level, by Holm's correction over all of them."""
    words = ["-" if d is None or d.p is None else "tie" for d in differences]
    tested = [(n, d) for n, d in enumerate(differences) if d is not None and d.p is not None]
    for rank, (number, d) in enumerate(sorted(tested, key=lambda pair: pair[1].p or 0.0)):
        if d.p is None or d.p > 0.05 / (len(tested) - rank):
            break
        words[number] = "win" if d.mean > 0 else "loss"
    return words


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


def accuracy_table(values: Values, sets: Sequence[str], labels: str) -> str:
    """Every variant's accuracy on every set."""
    names = [n for n in (*BASELINES, *DEAR, *VARIANTS) if any((s, n) in values for s in sets)]
    lines = [[TITLES[n], *(mean_text(values, s, n, labels) for s in sets)] for n in names]
    return table(("", *sets), lines)


def mean_table(values: Values, sets: Sequence[str]) -> str:
    """Means over the sets of what stands on all of them."""
    lines = []
    for name in ("raw_logistic", "components", *VARIANTS):
        means = []
        for labels in (str(FEW), "all"):
            found = [[v[labels] for v in values.get((s, name), {}).values()] for s in sets]
            means.append(f"{np.mean([np.mean(f) for f in found]):.1f}" if all(found) else "-")
        lines.append([TITLES[name], *means])
    return table((f"mean of {len(sets)} sets", f"{FEW} labels a class", "all labels"), lines)


def rival_table(values: Values, sets: Sequence[str]) -> str:
    """MetaMAE minus each rival."""
    lines = []
    for labels in (str(FEW), "all"):
        for rival in RIVALS:
            each = [difference(values, s, "metamae", rival, labels) for s in sets]
            words = holm(each)
            mean = over_sets(values, sets, "metamae", rival, labels)
            cells = [
                "-" if d is None else d.text() + (f", {word}" if word in ("win", "loss") else "")
                for d, word in zip(each, words, strict=True)
            ]
            counts = "/".join(str(words.count(w)) for w in ("win", "tie", "loss"))
            name = f"{TITLES[rival]}, {'all' if labels == 'all' else labels + ' a class'}"
            lines.append([name, *cells, "-" if mean is None else mean.text(), counts])
    return table(("MetaMAE minus", *sets, "mean", "win/tie/loss"), lines)


def part_table(values: Values, sets: Sequence[str]) -> str:
    """Every part beside MAE, and MetaMAE beside MAE."""
    lines = []
    for name in ("umae", "metamae", *PARTS):
        cells = []
        for labels in (str(FEW), "all"):
            for dataset in sets:
                d = difference(values, dataset, name, "mae", labels)
                cells.append("-" if d is None else d.text())
        if set(cells) != {"-"}:
            lines.append([TITLES.get(name, name), *cells])
    header = [f"{s}, {n}" for n in (f"{FEW} a class", "all") for s in sets]
    return table(("minus MAE", *header), lines)


def auto_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rate and ratio of now and of before, on validation cuts: the mean of tokens, and all."""
    lines = []
    for row in rows:
        if row["stage"] == "auto":
            method, _, setting = row["variant"].partition(", ")
            kinds = [row.get(kind) for kind in ("values", "tokens")]
            cells = [
                f"{100 * np.mean(kind[n]):.1f}" if kind else "-"
                for kind in kinds
                for n in (str(FEW), "all")
            ]
            lines.append([row["dataset"], setting or "-", TITLES[method], *cells])
    heads = [f"{kind}, {n}" for kind in ("mean", "all tokens") for n in (f"{FEW} a class", "all")]
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


def make_page(report: Mapping[str, Any]) -> str:
    """The page."""
    rows = report["rows"]
    values = read_values(rows)
    sets = list(dict.fromkeys(r["dataset"] for r in rows if r["variant"] == "metamae"))
    seeds = {s: len(values[s, "metamae"]) for s in sets}
    fixed = [r for r in rows if r["stage"] == "fixed" and r["method"] == "metamae"]
    steps = sorted({r["steps"] for r in fixed})
    where = sorted({f"{r['hardware']}, torch {r['torch']}, revision {r['revision']}" for r in rows})
    told = ", ".join(f"{name} {count}" for name, count in seeds.items())
    predictions = "\n".join(f"{n}. {text}" for n, text in enumerate(PREDICTIONS, start=1))
    parts = [s for s in PART_SETS if s in sets]
    earlier = ""
    if any("tokens" not in r for r in fixed):
        earlier = (
            "\nThe preset is that of before: a rate of 5e-4 for all data, and three quarters of "
            "signals\nand images masked; features are means of tokens."
        )
    return f"""# Does pretraining save labels, and what in it does the work?

Test accuracy in percent, of logistic regression on frozen standardised features; 20 draws of
labels, the same for every method. Encoders: the preset `auto`, {" or ".join(map(str, steps))}
steps, one setting for all data and methods, nothing tuned on them. Seeds of
pretraining: {told}.{earlier}
Made by `benchmarks/proof_page.py` from [rows](proof.json), which `benchmarks/proof.py` measured.

## With {FEW} labels a class

{accuracy_table(values, sets, str(FEW))}

Mean and deviation over seeds.

{mean_table(values, sets)}

## With all labels

{accuracy_table(values, sets, "all")}

## MetaMAE beside its rivals

{rival_table(values, sets)}

Mean paired difference over seeds with Student's 95 % interval; draws of labels are shared, so
that their spread is not in it, nor that of the test rows. A win or a loss is one by a t test at
5 % after Holm's correction over the sets.

## What in it does the work

{part_table(values, parts)}

The same setting but for what is named; paired with MAE, seed by seed.

## What the preset's rate and ratio do

{auto_table(rows)}

Validation cuts of training rows, {STEPS} steps, one seed (100); "all tokens" are up to 64 principal
components of the features of all of them side by side.

## Trials

{tune_table(rows)}

Validation cuts, {FEW} labels a class, {TUNE_STEPS} steps, one seed. Unfinished where a method has
fewer than five; no method's best trial was taken to test rows yet.

## What was expected

Written into the program before the first cell ran:

{predictions}

## How it was measured

{"; ".join(where)}; a thread each, side by side with other work. {len(rows)} cells.
"""


@styled()
def draw(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy against labels a class, a panel a set; bands are 95 % intervals over seeds."""
    values = read_values(report["rows"])
    sets = list(dict.fromkeys(r["dataset"] for r in report["rows"] if r["variant"] == "metamae"))
    figure = Figure(figsize=(4 * len(sets), 5.2))
    for axis, dataset in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for name in DRAWN:
            runs = list(values.get((dataset, name), {}).values())
            if not runs:
                continue
            numbers = [n for n in runs[0] if n != "all"]
            ticks = [float(n) for n in numbers] + [3 * float(numbers[-1])]
            points = np.array([[run[n] for n in (*numbers, "all")] for run in runs])
            colour, marker, line = look_of(name)
            mean, wide = points.mean(0), name == "metamae"
            if len(points) > 1:
                error = points.std(0, ddof=1) / len(points) ** 0.5
                half = np.array([student_margin(float(e), len(points)) for e in error])
                axis.fill_between(ticks, mean - half, mean + half, color=colour, alpha=0.12, lw=0)
            style = {"lw": 3.0 if wide else 2.0, "ms": 12 if wide else 7}
            axis.plot(ticks, mean, line, color=colour, marker=marker, label=TITLES[name], **style)
        axis.set_xscale("log")
        names = [f"{int(n) // 1000}k" if int(n) >= 1000 else n for n in numbers]
        axis.set_xticks(ticks, [*names, "all"], rotation=60 if len(names) > 8 else 0)
        axis.minorticks_off()
        axis.set_title(dataset.replace("_spatial", ""))
        axis.set_xlabel("labels a class")
        # An untrained encoder's first points may lie far below: the room is for the others.
    figure.axes[0].set_ylabel("test accuracy, %")
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6)
    figure.savefig(path)


def main() -> None:
    """Write both."""
    report = read_json(RESULTS)
    write_text(RESULTS.with_suffix(".md"), make_page(report))
    draw(report, PICTURE)


if __name__ == "__main__":
    main()
