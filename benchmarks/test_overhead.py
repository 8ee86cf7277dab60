"""What a MetaMAE training step costs beside MAE's, with the same encoder, decoder and batch.

The paper states about 1.4 times MAE's training time, without hardware or method.
"""

from __future__ import annotations

import datetime
import io
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import interleave, median, spread

from metamae import build_method, load_dataset, make_config
from metamae.checkpoint import write_json
from metamae.config import Config
from metamae.data import POCKET, Dataset
from metamae.provenance import device_name, revision
from metamae.randomness import generator

RESULTS = Path(__file__).parent / "results"
PAPER_RATIO = 1.4


def training_step(config: Config, dataset: Dataset, device: torch.device) -> Callable[[], None]:
    """One full step: forward, backward, update; always on the same batch."""
    size = config.training.batch_size
    method = build_method(config, dataset.inputs).to(device).train()
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-4, weight_decay=1e-4)
    batch = {name: x.to(device) for name, x in dataset.pretrain.batch(range(size)).items()}
    split = method.draw(size, generator(0, "benchmark")).to(device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        method(batch, split).loss.backward()
        optimiser.step()

    return step


def measure(name: str, device: torch.device, rounds: int) -> dict[str, object]:
    """One row: both methods interleaved on the pocket preset of one data set."""
    config, dataset = make_config(name), load_dataset(name)
    sides = {
        m: training_step(replace(config, method=m), dataset, device) for m in ("mae", "metamae")
    }
    times = interleave(sides, device, rounds=rounds)
    ratios = [b / a for a, b in zip(times["mae"], times["metamae"], strict=True)]
    return {
        "setting": f"pocket/{name}",
        "device": device.type,
        "dtype": "float32",
        "mode": "eager",
        "decoder": "self",
        "policy": config.adaptation.differentiation,
        "batch": config.training.batch_size,
        "mae_ms": round(median(times["mae"]), 2),
        "mae_spread_ms": round(spread(times["mae"]), 2),
        "metamae_ms": round(median(times["metamae"]), 2),
        "metamae_spread_ms": round(spread(times["metamae"]), 2),
        "ratio": round(median(ratios), 3),
        "ratio_spread": round(spread(ratios), 3),
    }


def test_overhead(device: torch.device, tables: list[str]) -> None:
    rounds = 15 if device.type == "cpu" else 100
    rows = [measure(name, device, rounds) for name in POCKET if name != "basic_motions"]
    report = {
        "hardware": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": revision(),
        "rounds": rounds,
        "paper_ratio": PAPER_RATIO,
        "mean_ratio": round(statistics.mean(float(str(row["ratio"])) for row in rows), 3),
        "rows": rows,
    }
    write_json(RESULTS / f"overhead-pocket-{device.type}.json", report)
    tables.append(render(report))
    assert all(float(str(row["ratio"])) > 0 for row in rows)


def render(report: dict[str, object]) -> str:
    """The report as a terminal table."""
    table = Table(
        title=f"Training step, MetaMAE beside MAE - {report['hardware']}, torch {report['torch']}, "
        f"{report['revision']}; paper: about {PAPER_RATIO}",
        title_justify="left",
    )
    columns = ("setting", "batch", "mae_ms", "metamae_ms", "ratio", "ratio_spread")
    for column in columns:
        table.add_column(column, justify="left" if column == "setting" else "right")
    rows = report["rows"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    table.add_row("mean", "", "", "", str(report["mean_ratio"]), "")
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue()
