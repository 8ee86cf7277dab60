"""Probe accuracy against seconds of training, MetaMAE beside MAE (the paper's Figure 2).

    pytest benchmarks/ --benchmark --device cpu -k wallclock
    pytest benchmarks/ --benchmark --device cpu -k "wallclock and digits" -s
    pytest benchmarks/ --benchmark --device cpu -k "wallclock and sensors" --steps 8

Every test measures one data set and seed, and puts its rows into ``results/wallclock-DEVICE.json``;
what is there already is not measured again, so that a run that was stopped goes on. ``-s`` shows
progress. With ``--steps`` rows and figure go to a temporary folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rows import origin
from tables import markdown, terminal
from wallclock import CLOCKS, LONGER, METHODS, draw, points, shown, summarise, table

from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.protocols import describe_protocol, evaluate
from metamae.files import write_json, write_text
from metamae.progress import Nested, Reporter
from metamae.training.pretraining import Pretrained, pretrain
from metamae.training.provenance import device_name

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ("sensors", "digits", "tabular")
SEEDS = range(3)
PROTOCOL = "tuned"
NOTES = f"""\
Both methods train the preset's model, batch and learning rate, in one process and in turns: MAE to
its next point, MetaMAE to its own, and so on, each continuing from its checkpoint. The learning
rate is constant, so a point is what a run of that many steps ends with. MAE takes {float(LONGER)}
times MetaMAE's steps, about what a step of MetaMAE costs, so that both curves end at about the same
time. Seconds are those of training steps alone (data, loss, gradients, update): `wall` is elapsed
time, `cpu` the time all threads of the process spent, which other processes disturb less. At every
point a linear probe is fitted on frozen features; its accuracy on test rows is shown in percent,
mean and sample deviation over seeds.

`mae_best` is the highest of MAE's means, untrained weights (0 steps) included; it is chosen on test
rows, which favours MAE. `metamae_passes_s` is when MetaMAE's mean, straight between its points,
first rises above it; `then_above` is how many of its points from there on are above: a difference
smaller than the deviations may come and go. With `mae_best` at 0 steps, training by MAE gained
nothing, and the time only says when MetaMAE first gains something. `mae_s` and `metamae_s` are
where the curves end."""
Row = dict[str, Any]


@pytest.mark.parametrize(("dataset", "seed"), [(name, seed) for name in DATASETS for seed in SEEDS])
def test_wallclock(
    device: torch.device,
    dataset: str,
    seed: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    results, pictures = ROOT / "benchmarks" / "results", ROOT / "docs"
    asked = request.config.getoption("--steps")
    if asked is not None:
        results = pictures = tmp_path_factory.getbasetemp() / "wallclock"
    steps = asked or make_config(dataset).training.steps
    clock = request.config.getoption("--clock") if device.type == "cpu" else "wall"
    path = results / f"wallclock-{device.type}.json"
    picture = pictures / ("wallclock.png" if device.type == "cpu" else "wallclock-cuda.png")
    old = comparable(read(path), dataset, steps, device)
    if any((row["dataset"], row["seed"]) == (dataset, seed) for row in old):
        publish(old, clock, path, picture)
        pytest.skip(f"measured before; delete its rows in {path} to measure it again")
    rows = list(measure(dataset, seed, steps, device, tmp_path))
    report = publish([*old, *rows], clock, path, picture)
    here = [shown(line) for line in report["summary"] if line["dataset"] == dataset]
    text = terminal(f"{dataset} after seed {seed}", here[:1])
    request.getfixturevalue("tables").append(f"{text}in {path} and {picture}\n")
    for method in METHODS:
        found = [row for row in rows if row["method"] == method]
        assert [row["steps"] for row in found] == points(method, steps)
        assert all(0 < row["value"] <= 1 for row in found)
        assert found[0]["seconds"] == 0.0 < found[-1]["seconds"]


def read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def comparable(rows: list[Row], dataset: str, steps: int, device: torch.device) -> list[Row]:
    """Rows to keep: of a data set only whole seeds, measured under the conditions of now."""
    now = conditions(make_config(dataset), device)
    expected = {(method, s) for method in METHODS for s in points(method, steps)}
    fit = [r for r in rows if r["dataset"] == dataset and now.items() <= r.items()]
    whole = {
        seed
        for seed in {row["seed"] for row in fit}
        if {(row["method"], row["steps"]) for row in fit if row["seed"] == seed} == expected
    }
    kept = [row for row in fit if row["seed"] in whole]
    return [*(row for row in rows if row["dataset"] != dataset), *kept]


def conditions(config: Config, device: torch.device) -> Row:
    """What seconds and accuracies of one mean must have in common."""
    return {
        "batch": config.training.batch_size,
        "protocol": f"{PROTOCOL}: {describe_protocol(PROTOCOL, config.probe)}",
        "device": device.type,
        "hardware": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def measure(name: str, seed: int, steps: int, device: torch.device, folder: Path) -> Iterator[Row]:
    """All rows of one data set and seed, both methods in turns."""
    dataset = load_dataset(name)
    for method in METHODS:  # first calls are slow, and only one method would pay for them
        pretrain(configure(name, method, seed, 3), dataset, folder / "warm" / method, device=device)
    spent = dict.fromkeys(METHODS, 0.0)
    turns = list(zip(*(points(method, steps) for method in METHODS), strict=True))
    title = f"{name} wall-clock #{seed}"
    total = len(METHODS) * len(turns)
    with Reporter(Console(width=120)).stage(title, total=total, unit="points") as stage:
        for turn in turns:
            for method, target in zip(METHODS, turn, strict=True):
                config = configure(name, method, seed, target)
                run, nested = folder / method, Nested(stage)
                done = pretrain(config, dataset, run, device=device, resume=True, reporter=nested)
                spent[method] += done.cpu_seconds
                row = describe(config, dataset, done, spent[method], device)
                stage.advance(**{method: row["value"]})
                yield row


def configure(dataset: str, method: str, seed: int, steps: int) -> Config:
    """The preset, logging and saving at points only."""
    never = "1000000000"
    overrides = [f"training.{key}={never}" for key in ("log_every", "checkpoint_every")]
    return make_config(
        dataset, method=method, seed=seed, overrides=[*overrides, f"training.steps={steps}"]
    )


def describe(
    config: Config, dataset: Dataset, done: Pretrained, cpu_seconds: float, device: torch.device
) -> Row:
    """Probe a run where it stands."""
    features = Features.of(dataset, *compute_features(done.method, dataset, device=str(device)))
    result = evaluate(PROTOCOL, features, config.probe, seed=config.seed)
    return {
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "steps": done.steps,
        "seconds": round(done.seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "metric": result.metric,
        "value": round(result.value, 6),
        **conditions(config, device),
        **origin(),
    }


def publish(rows: list[Row], clock: str, path: Path, picture: Path) -> dict[str, Any]:
    """Write rows, summary, page and figure."""
    order = {name: number for number, name in enumerate(DATASETS)}
    rows = sorted(rows, key=lambda r: (order[r["dataset"]], r["method"], r["seed"], r["steps"]))
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    clocks = [clock, *(other for other in CLOCKS if other != clock)]
    if rows[0]["device"] != "cpu":
        clocks = [clock]  # the processor only queues what the device computes
    summary = [summarise(rows, name, one) for one in clocks for name in names]
    report = {"clock": clock, "summary": summary, "rows": rows}
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(report, names))
    draw(rows, clock, picture)
    return report


def page(report: dict[str, Any], names: list[str]) -> str:
    """The report as Markdown: the summary, what it was measured with, a table per data set."""
    rows = report["rows"]
    parts = [("Summary", [shown(line) for line in report["summary"]])]
    parts.append(("Measured", [provenance(rows, name) for name in names]))
    parts += [(name, table(rows, name)) for name in names]
    return markdown("Accuracy against seconds of training, MetaMAE beside MAE", NOTES, parts)


def provenance(rows: list[Row], dataset: str) -> Row:
    """With what, when and from which sources a data set was measured."""
    keys = ("protocol", "batch", "hardware", "threads", "torch", "date", "revision")
    chosen = [row for row in rows if row["dataset"] == dataset]
    return {"dataset": dataset} | {
        key: ", ".join(dict.fromkeys(str(row[key]) for row in chosen)) for key in keys
    }
