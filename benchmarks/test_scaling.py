"""Step time and peak memory of MAE and MetaMAE against what makes a step large.

    pytest benchmarks/ --benchmark --device cpu -k scaling
    pytest benchmarks/ --benchmark --device cpu -k "scaling and depth"

Every test walks along one axis, everything else as in ``BASE``, and puts its rows into
``results/scaling-DEVICE.json`` in place of older ones, so that axes can be measured one at a time.
Then ``docs/scaling.png`` is drawn from all axes that are there.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from memory import peak_mib
from rows import RESULTS, Row, hardware_of, merged, origin
from scaling_figure import AXES, draw
from settings import Side, training_step
from tables import markdown, terminal
from timing import Times, interleave, middle, spread

from metamae import make_config
from metamae.config.schema import Config
from metamae.files import write_json, write_text
from metamae.inputs import Signal
from metamae.training.provenance import device_name


@dataclass(frozen=True)
class Point:
    """One training step. MAE does not depend on ``steps`` and ``policy``.

    Attributes:
        batch: Examples.
        tokens: Tokens of an example, half of them masked.
        depth: Blocks of the decoder.
        steps: Inner steps.
        policy: How the outer loss is differentiated through them.
    """

    batch: int
    tokens: int
    depth: int = 4
    steps: int = 1
    policy: str = "unrolled"


BASE = {"cpu": Point(batch=16, tokens=64), "cuda": Point(batch=128, tokens=128)}
MODEL = {
    "cpu": ["encoder.width=128", "encoder.depth=4", "encoder.heads=4", "decoder.width=64"],
    "cuda": [],  # the paper's
}
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "batch": {"cpu": (8, 16, 32, 64), "cuda": (32, 64, 128, 256, 512)},
    "tokens": {"cpu": (16, 32, 64, 128), "cuda": (32, 64, 128, 256, 512)},
    "depth": {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8)},
    "steps": {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8)},
}
ORDERS = {1: "first_order", 2: "unrolled"}
POLICIES = ("unrolled", "checkpointed", "finite_difference", "first_order")
POLICY_STEPS = 4  # with a single one, policies differ little in memory
METHODS = ("mae", "metamae")
NOTES = """\
A row is one eager float32 training step (forward, backward, fused AdamW) of MAE and of MetaMAE with
the same modules on the same batch. All rows of an axis are interleaved in one process; where MAE
is the same step in several rows, it is measured once. `value` is the place on the axis. `order` is
2 where the outer gradient is exact through the inner steps (`unrolled`, `checkpointed`), 1 where it
stops there (`first_order`); `finite_difference` approximates order 2. `encoder` is depth x width.
Times are medians over rounds by the clock of the column `clock`, `ratio` is the median of the
quotient, spreads are half the distance between the quartiles. Peaks are bytes alive at once above
those before the step, counted in one step: weights and optimiser state are not included."""


@pytest.mark.parametrize("axis", AXES)
def test_scaling(device: torch.device, axis: str, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--rounds") or (15 if device.type == "cpu" else 30)
    clock = request.config.getoption("--clock") if device.type == "cpu" else "wall"
    rows = measure(axis, device, rounds, clock)
    report = save(rows, device)
    request.getfixturevalue("tables").append(terminal(f"Scaling: {axis}", brief(rows)))
    assert [row["value"] for row in rows] == list(points_of(axis, device))
    assert [row for row in report["rows"] if row["axis"] == axis] == rows
    peaks = [row["metamae_peak_mib"] for row in rows]
    if axis in SIZES:
        assert peaks == sorted(peaks), "a larger step needs more memory"
    if axis == "policy":
        assert peaks[0] == max(peaks), "every other policy holds fewer inner steps at once"


def points_of(axis: str, device: torch.device) -> dict[int | str, Point]:
    """Places on an axis, and the step at each."""
    base = BASE[device.type]
    if axis == "order":
        return {order: replace(base, policy=policy) for order, policy in ORDERS.items()}
    if axis == "policy":
        return {name: replace(base, steps=POLICY_STEPS, policy=name) for name in POLICIES}
    changes: list[dict[str, Any]] = [{axis: size} for size in SIZES[axis][device.type]]
    return {change[axis]: replace(base, **change) for change in changes}


def name_of(method: str, point: Point) -> str:
    """The same for steps that are the same."""
    return f"{method} {point if method == 'metamae' else replace(point, steps=1, policy='')}"


def step(method: str, point: Point, device: torch.device) -> Side:
    """The training step at a point: a signal of random values, four steps to a token."""
    spec = Signal(name="signal", channels=8, length=4 * point.tokens, token_length=4)
    return training_step(configure(method, point, device), (spec,), device)


def configure(method: str, point: Point, device: torch.device) -> Config:
    """The paper's settings for signals, but for sizes."""
    overrides = [
        "training.compile=off",
        *MODEL[device.type],
        f"decoder.depth={point.depth}",
        f"training.batch_size={point.batch}",
        f"adaptation.steps={point.steps}",
        f"adaptation.differentiation={point.policy}",
        "masking.mask_ratio=0.5",
        "encoder.dropout=0",
    ]
    return make_config("pamap2", preset="paper", method=method, overrides=overrides)


def measure(axis: str, device: torch.device, rounds: int, clock: str) -> list[Row]:
    """All rows of an axis."""
    points = points_of(axis, device)
    chosen = {name_of(m, point): (m, point) for point in points.values() for m in METHODS}
    sides = {name: step(*one, device) for name, one in chosen.items()}
    found = interleave({name: side.run for name, side in sides.items()}, device, rounds=rounds)
    peaks = {name: peak_mib(side.run, device)[0] for name, side in sides.items()}
    about = {"clock": clock, "rounds": rounds, "hardware": device_name(device)} | origin()
    return [
        {"axis": axis, "value": value}
        | sizes(point, sides[name_of("metamae", point)].config)
        | costs(point, found, clock, peaks)
        | about
        for value, point in points.items()
    ]


def sizes(point: Point, config: Config) -> Row:
    """What is computed in a row."""
    return {
        "policy": point.policy,
        "order": 1 if point.policy == ORDERS[1] else 2,
        "batch": point.batch,
        "tokens": point.tokens,
        "depth": point.depth,
        "steps": point.steps,
        "encoder": f"{config.encoder.depth} x {config.encoder.width}",
        "decoder_width": config.decoder.width,
    }


def costs(point: Point, found: Times, clock: str, peaks: dict[str, float]) -> Row:
    """What it took."""
    mae, metamae = (name_of(method, point) for method in METHODS)
    times: dict[str, list[float]] = getattr(found, clock)
    ratios = [b / a for a, b in zip(times[mae], times[metamae], strict=True)]
    return {
        "mae_ms": middle(times[mae]),
        "mae_spread_ms": round(spread(times[mae]), 2),
        "metamae_ms": middle(times[metamae]),
        "metamae_spread_ms": round(spread(times[metamae]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": round(spread(ratios), 3),
        "mae_peak_mib": peaks[mae],
        "metamae_peak_mib": peaks[metamae],
        "peak_ratio": round(peaks[metamae] / peaks[mae], 3),
    }


def save(rows: list[Row], device: torch.device) -> Row:
    """Put an axis into the result file; write the file's page and the figure."""
    path = RESULTS / f"scaling-{device.type}.json"
    order = list(AXES)
    every = merged(path, rows, ("axis",), lambda row: order.index(row["axis"]))
    report = {"hardware": hardware_of(every), "rows": every}
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(report))
    draw()
    return report


def brief(rows: list[Row]) -> list[Row]:
    """Columns that fit on a terminal."""
    shown = ("value", "mae_ms", "metamae_ms", "ratio", "ratio_spread")
    return [{k: row[k] for k in (*shown, "mae_peak_mib", "metamae_peak_mib")} for row in rows]


def page(report: Row) -> str:
    """The report as Markdown, one table an axis."""
    parts = []
    for axis, title in AXES.items():
        rows = [row for row in report["rows"] if row["axis"] == axis]
        if rows:
            parts.append((title, rows))
    about = f"{report['hardware']}.\n\n{NOTES}"
    return markdown("How a training step scales, MetaMAE beside MAE", about, parts)
