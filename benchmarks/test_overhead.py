"""What a MetaMAE training step costs beside MAE's, with the same encoder, decoder and batch.

    pytest benchmarks/ --benchmark --device cpu -k "overhead and paper"
    pytest benchmarks/ --benchmark --device cpu -k "higgs and compiled"

Every test measures one row and puts it into ``results/overhead-DEVICE.json`` in place of an older
one, so that settings can be measured one at a time. Compiling takes minutes the first time; with
TORCHINDUCTOR_CACHE_DIR set, its results are found again. The paper states about 1.4 times MAE's
training time, without hardware or method.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from memory import peak_mib
from rows import RESULTS, merged, origin
from settings import CHUNKS, SHAPES, Side, Variant, configure, inputs_of, training_step
from tables import markdown, terminal
from timing import Times, interleave, matmul_rate, middle, spread

from metamae.files import write_json, write_text
from metamae.training.devices import multiplies_bfloat16
from metamae.training.provenance import device_name
from tests.tiny import FIRST_NINE

KEY = ("setting", "device", "dtype", "mode", "decoder", "policy")
PAPER_RATIO = 1.4
VARIANTS = [
    Variant(),
    Variant(policy="checkpointed"),
    # Four batches in four chunks: a chunk is what the other rows have for a batch.
    Variant(policy="chunked", batches=CHUNKS),
    Variant(decoder="cross"),
    Variant(decoder="cross-25"),
    Variant(dtype="bfloat16"),
    Variant(mode="compiled"),
    Variant(mode="compiled", decoder="cross"),
    Variant(mode="compiled", dtype="bfloat16"),
    Variant(mode="compiled", dtype="bfloat16", decoder="cross"),
]
CASES = [(f"paper/{name}", variant) for variant in VARIANTS for name in SHAPES] + [
    (f"pocket/{name}", Variant()) for name in FIRST_NINE if name != "basic_motions"
]
NOTES = f"""\
A row is one training step (forward, backward, fused AdamW) of MAE and of MetaMAE with the same
modules, precision and mode, interleaved in one process. `ratio` is the median over rounds of the
quotient, by the clock of the column `clock`: `cpu` is the time all threads of the process spent,
which other processes disturb less; `wall` is elapsed time. `flop_ratio` is the quotient of the
counted products: what a machine limited by arithmetic would need. `matmul_share` is MetaMAE's
counted products per second, as a share of what one large float32 product reaches here.
`straight_ms` is the same MetaMAE step as its equations read: all tokens embedded and decoded, plain
attention, eager float32, unfused AdamW; `speedup` is against it. `default_ms` is the MetaMAE step
with the paper's decoder on all masked tokens, eager float32; `gain` is it over this one. Peaks are
bytes alive at once above those before the step, weights and optimiser state not included. The paper
states about {PAPER_RATIO}."""


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's compiler does
@pytest.mark.parametrize(("setting", "variant"), CASES, ids=str)
def test_overhead(
    device: torch.device, setting: str, variant: Variant, request: pytest.FixtureRequest
) -> None:
    if variant.dtype == "bfloat16" and not multiplies_bfloat16(device):
        pytest.skip("this device has no bfloat16 products: a step would take ten times as long")
    rounds = request.config.getoption("--rounds") or (9 if device.type == "cpu" else 50)
    clock = request.config.getoption("--clock") if device.type == "cpu" else "wall"
    row = measure(setting, variant, device, rounds, clock)
    report = merge(setting.split("/")[0], device, row)
    request.getfixturevalue("tables").append(terminal(setting, [row]))
    assert row["ratio"] > 0
    assert {tuple(r[k] for k in KEY) for r in report["rows"]} >= {tuple(row[k] for k in KEY)}


def measure(
    setting: str, variant: Variant, device: torch.device, rounds: int, clock: str
) -> dict[str, Any]:
    """One row."""
    inputs = inputs_of(setting)
    sides = {
        method: training_step(configure(setting, method, variant, device), inputs, device)
        for method in ("mae", "metamae")
    }
    plain = configure(setting, "metamae", Variant(batches=variant.batches), device)
    if variant.decoder == "self":
        sides["straight"] = training_step(plain, inputs, device, straight=True)
    else:
        sides["default"] = training_step(plain, inputs, device)
    found = interleave({k: side.run for k, side in sides.items()}, device, rounds=rounds)
    times = {name: getattr(found, clock)[name] for name in sides}
    ratios = quotients(times)
    peaks = {name: peak_mib(side.run, device)[0] for name, side in sides.items()}
    flops = {name: side.flops() for name, side in sides.items()}
    row: dict[str, Any] = dict(zip(KEY, (setting, device.type), strict=False)) | {
        "dtype": variant.dtype,
        "mode": variant.mode,
        "decoder": variant.decoder,
        "policy": variant.policy,
        "batch": plain.training.batch_size,
        "mae_ms": middle(times["mae"]),
        "metamae_ms": middle(times["metamae"]),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": round(spread(ratios), 3),
        "flop_ratio": round(flops["metamae"] / flops["mae"], 3),
        "mae_peak_mib": peaks["mae"],
        "metamae_peak_mib": peaks["metamae"],
        "peak_ratio": round(peaks["metamae"] / peaks["mae"], 3),
    }
    return row | details(sides, found, times, flops, device, clock, rounds)


def details(
    sides: dict[str, Side],
    found: Times,
    times: dict[str, list[float]],
    flops: dict[str, int],
    device: torch.device,
    clock: str,
    rounds: int,
) -> dict[str, Any]:
    """The rest of a row."""
    config, seconds = sides["metamae"].config, statistics.median(found.wall["metamae"]) / 1000
    tokens = config.training.batch_size * sum(s.tokens for s in inputs_of_config(config))
    rate = matmul_rate(device, torch.float32)
    straight, default = times.get("straight"), times.get("default")
    return {
        "clock": clock,
        "ratio_wall": round(statistics.median(quotients(found.wall)), 3),
        "ratio_cpu": round(statistics.median(quotients(found.cpu)), 3),
        "mae_spread_ms": round(spread(times["mae"]), 2),
        "metamae_spread_ms": round(spread(times["metamae"]), 2),
        "straight_ms": middle(straight) if straight else None,
        "speedup": round(statistics.median(straight) / statistics.median(times["metamae"]), 2)
        if straight
        else None,
        "default_ms": middle(default) if default else None,
        "gain": round(statistics.median(default) / statistics.median(times["metamae"]), 2)
        if default
        else None,
        "tokens_per_s": round(tokens / seconds),
        "metamae_gflop": round(flops["metamae"] / 1e9, 2),
        "matmul_share": round(flops["metamae"] / seconds / rate, 3),
        "compile_s": round(sides["metamae"].compile_seconds, 1),
        "rounds": rounds,
    } | origin()


def inputs_of_config(config: Any) -> Any:
    return inputs_of(f"{config.preset}/{config.dataset}")


def quotients(times: dict[str, list[float]]) -> list[float]:
    return [b / a for a, b in zip(times["mae"], times["metamae"], strict=True)]


def merge(preset: str, device: torch.device, row: dict[str, Any]) -> dict[str, Any]:
    """Put a row into the result file, and write the file's page."""
    stem = f"overhead-{device.type}" if preset == "paper" else f"overhead-pocket-{device.type}"
    path = RESULTS / f"{stem}.json"
    order = {(s, str(v)): n for n, (s, v) in enumerate(CASES)}
    rows = merged(path, [row], KEY, lambda r: order.get((r["setting"], name_of(r)), 0))
    report = {
        "hardware": device_name(device),
        "paper_ratio": PAPER_RATIO,
        "means": means(rows),
        "rows": rows,
    }
    write_json(path, report)
    write_text(RESULTS / f"{stem}.md", page(report))
    return report


def name_of(row: dict[str, Any]) -> str:
    return str(Variant(row["mode"], row["dtype"], row["decoder"], row["policy"]))


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over settings of what the goals are about, per variant."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return [
        {"variant": name, "settings": len(group)}
        | {
            key: round(statistics.mean(row[key] for row in group), 3)
            for key in ("ratio", "flop_ratio", "peak_ratio", "speedup", "gain")
            if all(row.get(key) for row in group)
        }
        for name, group in groups.items()
    ]


def page(report: dict[str, Any]) -> str:
    """The report as Markdown: means, then one table per variant."""
    shown = [*KEY[:1], "batch", "mae_ms", "metamae_ms", "ratio", "ratio_spread", "flop_ratio"]
    shown += ["mae_peak_mib", "metamae_peak_mib", "peak_ratio", "straight_ms", "speedup"]
    shown += ["default_ms", "gain"]
    shown += ["tokens_per_s", "matmul_share", "compile_s", "clock", "threads", "revision"]
    parts = [("Means over settings", report["means"])]
    for mean in report["means"]:
        rows = [r for r in report["rows"] if name_of(r) == mean["variant"]]
        columns = [k for k in shown if any(r.get(k) is not None for r in rows)]
        parts.append((mean["variant"], [{k: r.get(k, "") for k in columns} for r in rows]))
    return markdown("Training step, MetaMAE beside MAE", f"{report['hardware']}.\n\n{NOTES}", parts)
