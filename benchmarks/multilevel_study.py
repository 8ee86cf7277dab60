"""Learned settings against fixed and tuned ones, on several data sets from one common start.

    python benchmarks/multilevel_study.py                 # everything that is missing
    python benchmarks/multilevel_study.py --datasets digits --seeds 1
    python benchmarks/multilevel_study.py --figure        # only the page and the picture

Arms, all with the preset's model, steps, batch and probe:
    shared           step size 0.5, contrast weight 0.1, nearby ratio 0.1, mask ratio 0.5, fixed
    tuned            the data set's own preset
    learned          starts at `shared`, learns all four on held-out unlabelled examples; same steps
    learned_seconds  the same, with as many steps as take `shared`'s time (by processor time)

A run is judged by several protocols, for they do not agree on what is better. A row is written to
benchmarks/results/multilevel-study.json as soon as its run is finished, and a page of means beside
it; a run that was stopped continues from its last checkpoint in runs/multilevel-study.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rows import origin
from tables import markdown

from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.protocols import evaluate
from metamae.files import write_json, write_text
from metamae.progress import Reporter
from metamae.report.style import SERIES, styled
from metamae.training.bilevel import PREFIX
from metamae.training.pretraining import Pretrained, pretrain
from metamae.training.provenance import device_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "multilevel-study.json"
PICTURE = ROOT / "docs" / "learned_settings.png"
DATASETS = ("sensors", "digits", "tabular")
PROTOCOLS = ("published", "tuned", "knn", "few-5")
ARMS = ("shared", "tuned", "learned", "learned_seconds")
SETTINGS = ("step_size", "contrast_weight", "nearby_ratio", "mask_ratio")
SHARED = [
    "adaptation.step_size=0.5",
    "contrast.weight=0.1",
    "masking.nearby_ratio=0.1",
    "masking.mask_ratio=0.5",
]
LEARN = [*SHARED, f"learn.settings=[{','.join(SETTINGS)}]"]
TIMED_STEPS = 12
Row = dict[str, Any]


def configure(dataset: str, arm: str, seed: int, steps: int | None) -> Config:
    """Resolved configuration of one run."""
    overrides = {"shared": SHARED, "tuned": []}.get(arm, LEARN)
    extra = [] if steps is None else [f"training.steps={steps}"]
    return make_config(dataset, overrides=[*overrides, *extra], seed=seed)


def cost_ratio(dataset: Dataset) -> float:
    """Processor time of a learning step over that of a plain one: median of interleaved rounds."""
    ratios = []
    for seed in range(3):
        seconds = {}
        for arm in ("shared", "learned"):
            config = make_config(
                dataset.name,
                overrides=[
                    *(SHARED if arm == "shared" else LEARN),
                    f"training.steps={TIMED_STEPS}",
                    "learn.warmup_steps=0",
                    "training.log_every=1000",
                ],
                seed=seed,
            )
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                pretrain(config, dataset, Path(folder))
                seconds[arm] = time.process_time() - start
        ratios.append(seconds["learned"] / seconds["shared"])
    return float(np.median(ratios))


def run_one(
    dataset: Dataset, arm: str, seed: int, steps: int | None, runs: Path, reporter: Reporter
) -> Row:
    """Pretrain, probe, describe."""
    config = configure(dataset.name, arm, seed, steps)
    folder = runs / dataset.name / arm / f"seed-{seed}"
    done = pretrain(config, dataset, folder, resume=True, reporter=reporter)
    features = Features.of(dataset, *compute_features(done.method, dataset))
    return {
        "dataset": dataset.name,
        "arm": arm,
        "seed": seed,
        "metric": dataset.task.metric,
        "values": {
            protocol: evaluate(protocol, features, config.probe, seed=seed).value
            for protocol in PROTOCOLS
        },
        "steps": done.steps,
        "pretrain_seconds": round(done.seconds, 2),
        "pretrain_cpu_seconds": round(done.cpu_seconds, 2),
        "batch_size": config.training.batch_size,
        "settings": final_settings(config, done),
        "series": thinned(done),
        "hardware": device_name(torch.device("cpu")),
    } | origin()


def final_settings(config: Config, done: Pretrained) -> dict[str, float]:
    """What a run ended with, learned or configured."""
    fixed = {
        "step_size": config.adaptation.step_size,
        "contrast_weight": config.contrast.weight,
        "nearby_ratio": config.masking.nearby_ratio,
        "mask_ratio": config.masking.mask_ratio,
    }
    return {
        name: done.history.series.get(PREFIX + name, [[0, value]])[-1][1]
        for name, value in fixed.items()
    }


def thinned(done: Pretrained, points: int = 25) -> dict[str, list[list[float]]]:
    """Learned settings over time, for the picture."""
    found = {k: v for k, v in done.history.series.items() if k.startswith(PREFIX)}
    return {
        name.removeprefix(PREFIX): [*series[:: max(1, len(series) // points)], series[-1]]
        for name, series in found.items()
    }


def study(options: argparse.Namespace, reporter: Reporter) -> None:
    """Everything that is missing, one data set after the other, seed by seed."""
    path = options.results
    rows: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    known = {(row["dataset"], row["arm"], row["seed"]) for row in rows}
    for name in options.datasets:
        missing = [
            (seed, arm)
            for seed in range(options.seeds)
            for arm in ARMS
            if (name, arm, seed) not in known
        ]
        if not missing:
            continue
        dataset = load_dataset(name)
        full = options.steps or make_config(name).training.steps
        shorter = equal_time_steps(dataset, full, options.runs, reporter)
        for seed, arm in missing:
            steps = shorter if arm == "learned_seconds" else options.steps
            rows.append(run_one(dataset, arm, seed, steps, options.runs, reporter))
            save(rows, path)
        draw(rows, options.picture)


def save(rows: list[Row], path: Path) -> None:
    """Rows in order, and a page of means beside them."""
    rows.sort(key=lambda row: (DATASETS.index(row["dataset"]), row["seed"], row["arm"]))
    write_json(path, rows)
    write_text(path.with_suffix(".md"), page(rows))


def page(rows: Sequence[Row]) -> str:
    """Means and deviations as Markdown."""
    first = rows[0]
    notes = (
        f"{first['hardware']}, torch {first['torch']}. Test metric in percent, mean ± standard "
        "deviation over seeds. `learned` and `learned_seconds` start at `shared`. "
        "`reached`: the mean of `learned` is not below that of "
        "`tuned` by more than the larger of both deviations."
    )
    parts = [(protocol, table(rows, protocol)) for protocol in PROTOCOLS]
    return markdown("Learned settings", notes, [*parts, ("Settings and time", ends(rows))])


def select(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(rows: Sequence[Row], protocol: str) -> list[Row]:
    """A line per data set."""
    lines = []
    for name in (n for n in DATASETS if select(rows, dataset=n)):
        line: Row = {"dataset": name}
        found = {}
        for arm in ARMS:
            chosen = select(rows, dataset=name, arm=arm)
            if chosen:
                found[arm] = summary([100 * row["values"][protocol] for row in chosen])
                line[arm] = f"{found[arm][0]:.1f} ± {found[arm][1]:.1f}"
        for arm in ("learned", "learned_seconds"):
            if {arm, "tuned"} <= found.keys():
                margin = max(found[arm][1], found["tuned"][1])
                column = "reached" if arm == "learned" else "in seconds"
                line[column] = "yes" if found["tuned"][0] - found[arm][0] <= margin else "no"
        lines.append(line)
    return lines


def ends(rows: Sequence[Row]) -> list[Row]:
    """Means of steps, time and final settings, a line per data set and arm."""
    lines = []
    for name in DATASETS:
        for arm in ARMS:
            chosen = select(rows, dataset=name, arm=arm)
            if not chosen:
                continue
            line: Row = {"dataset": name, "arm": arm, "seeds": len(chosen)}
            line["steps"] = chosen[0]["steps"]
            line["cpu seconds"] = f"{np.mean([r['pretrain_cpu_seconds'] for r in chosen]):.0f}"
            for setting in SETTINGS:
                mean, spread = summary([row["settings"][setting] for row in chosen])
                line[setting] = f"{mean:.3g}" + (
                    f" ± {spread:.2g}" if arm.startswith("learned") else ""
                )
            lines.append(line)
    return lines


def equal_time_steps(dataset: Dataset, steps: int, runs: Path, reporter: Reporter) -> int:
    """Steps of learning in the time of ``steps`` plain ones; measured once, then kept."""
    path = runs / dataset.name / "cost.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"ratio": cost_ratio(dataset)})
    ratio = float(json.loads(path.read_text())["ratio"])
    reporter.say(f"{dataset.name}: a learning step costs {ratio:.2f} times a plain one")
    return max(1, round(steps / ratio))


@styled()
def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy by arm and protocol on top; learned settings over time, one panel each, below."""
    names = [name for name in DATASETS if select(rows, dataset=name)]
    figure = Figure(figsize=(14, 8.4))
    top, bottom = figure.subfigures(2, 1)
    for number, (axis, name) in enumerate(
        zip(np.atleast_1d(top.subplots(1, len(names))), names, strict=True)
    ):
        draw_accuracies(axis, select(rows, dataset=name))
        axis.set_title(name)
        if number == 0:
            axis.set_ylabel("test accuracy, %")
            handles, labels = axis.get_legend_handles_labels()
            top.legend(handles, labels, loc="outside right center", title="mean ± std")
    for axis, setting in zip(bottom.subplots(1, len(SETTINGS)), SETTINGS, strict=True):
        for number, name in enumerate(names):
            for first, row in enumerate(select(rows, dataset=name, arm="learned")):
                points = np.array(row["series"][setting])
                label = name if first == 0 else None
                axis.plot(points[:, 0], points[:, 1], color=SERIES[number], lw=1.5, label=label)
        axis.set_title(f"learned {setting.replace('_', ' ')}")
        axis.set_xlabel("step")
        if setting.endswith("ratio"):
            axis.set_ylim(0, 1)
        else:
            axis.set_yscale("log")
    handles, labels = bottom.axes[0].get_legend_handles_labels()
    bottom.legend(handles, labels, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_accuracies(axis: Axes, rows: Sequence[Row]) -> None:
    """One data set: a colour per protocol."""
    for number, protocol in enumerate(PROTOCOLS):
        places, means, spreads = [], [], []
        for place, arm in enumerate(ARMS):
            chosen = select(rows, arm=arm)
            if chosen:
                mean, spread = summary([100 * row["values"][protocol] for row in chosen])
                places.append(place + 0.12 * (number - 1.5))
                means.append(mean)
                spreads.append(spread)
        axis.errorbar(places, means, spreads, fmt="o", color=SERIES[number], label=protocol)
    axis.set_xticks(range(len(ARMS)), [arm.replace("_", "\n") for arm in ARMS], fontsize="small")


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or only draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="which data sets")
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--steps", type=int, help="pretraining steps (default: the preset's)")
    add("--runs", type=Path, default=Path("runs/multilevel-study"), help="checkpoints")
    add("--results", type=Path, default=RESULTS, help="rows (JSON)")
    add("--picture", type=Path, default=PICTURE, help="picture to draw")
    add("--figure", action="store_true", help="only draw the rows that are there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.figure:
        rows = json.loads(options.results.read_text())
        save(rows, options.results)
        draw(rows, options.picture)
    else:
        study(options, Reporter(Console(width=120)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
