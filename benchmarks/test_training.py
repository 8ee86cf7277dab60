"""What `pretrain` takes for a step beside the bare step: same method, same batch size, in turns.

    pytest benchmarks/ --benchmark -k training

The bare step is forward, backward and update on one batch that lies ready. `pretrain` adds what a
user pays for: input, the draw of masks, the look at the loss, logging and progress.
"""

from __future__ import annotations

import statistics
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import RESULTS, merged, origin
from settings import Variant, configure, inputs_of, training_step
from tables import markdown, terminal
from timing import interleave, middle, spread

from metamae import load_dataset, make_config
from metamae.data.pocket import POCKET
from metamae.files import write_json, write_text
from metamae.training.pretraining import start_run
from metamae.training.provenance import device_name

STEPS = 4
"""Steps of either side in a round."""
KEY = ("setting", "method", "device", "threads")
NOTES = """\
`ratio` is the median over rounds of the time that `pretrain` takes for a step over that of the bare
step (forward, backward, fused AdamW on a batch that lies ready); the rounds alternate. Compiling is
off on both sides. `input` says how batches were prepared."""


@pytest.mark.parametrize("method", ["mae", "metamae"])
@pytest.mark.parametrize("name", POCKET)
def test_training(
    device: torch.device, name: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rounds = request.config.getoption("--rounds") or 15
    row = measure(name, method, device, rounds, tmp_path)
    path = RESULTS / f"training-{device.type}.json"
    rows = merged(path, [row], KEY, lambda r: (POCKET.index(r["setting"]), r["method"]))
    report = {"hardware": device_name(device), "rows": rows}
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(report))
    request.getfixturevalue("tables").append(terminal(f"{name}, {method}", [row]))
    assert row["ratio"] > 0


def measure(
    name: str, method: str, device: torch.device, rounds: int, folder: Path
) -> dict[str, Any]:
    """One row."""
    bare = training_step(
        configure(f"pocket/{name}", method, Variant(), device), inputs_of(f"pocket/{name}"), device
    )
    endless = [f"training.{key}=100000" for key in ("steps", "checkpoint_every")]
    config = make_config(name, method=method, overrides=[*endless, "training.compile=off"])
    run = start_run(config, load_dataset(name), folder, device)
    with closing(run.train()) as steps:
        sides = {
            "bare": lambda: [bare.run() for _ in range(STEPS)],
            "pretrain": lambda: [next(steps) for _ in range(STEPS)],
        }
        times = interleave(sides, device, rounds=rounds).wall
    ratios = [b / a for a, b in zip(times["bare"], times["pretrain"], strict=True)]
    return {
        "setting": name,
        "method": method,
        "device": device.type,
        "batch": config.training.batch_size,
        "bare_ms": middle([t / STEPS for t in times["bare"]]),
        "pretrain_ms": middle([t / STEPS for t in times["pretrain"]]),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": round(spread(ratios), 3),
        "input": run.input.decision,
        "rounds": rounds,
    } | origin()


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    hidden = ("device", "date", "torch")
    rows = [{k: v for k, v in row.items() if k not in hidden} for row in report["rows"]]
    mean = statistics.mean(row["ratio"] for row in report["rows"])
    heading = f"{report['hardware']}. Mean ratio {mean:.2f}.\n\n{NOTES}"
    return markdown("A step of pretrain beside the bare step", heading, [("Pocket sets", rows)])
