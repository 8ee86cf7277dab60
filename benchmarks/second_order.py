"""The second-order part of MetaMAE's gradient: how large, in which direction, by the step size.

For every step size: what a refinement takes off the support loss, the norm of the part of the
gradient that first order leaves out over the norm of the whole, and the cosine of first order to
the whole; of encoder and decoder, without the contrast and with it. At the initial weights, and at
those of runs of ``benchmarks/proof.py``.

    PYTHONPATH=$PWD python benchmarks/second_order.py runs/proof/fixed/*/metamae/seed-0
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamae import load_dataset
from metamae.config.schema import Config
from metamae.files import write_json, write_text
from metamae.methods.building import build_method
from metamae.methods.metamae import MetaMAE, refine
from metamae.randomness import generator
from metamae.training.checkpoint import Checkpoint
from metamae.training.provenance import device_name, revision

RESULTS = Path(__file__).resolve().parent / "results" / "second_order.json"
STEP_SIZES = (0.1, 0.5, 5.0, 20.0, 100.0, 500.0, 2000.0)
SHOWN = (0.5, 5.0, 20.0)
EXAMPLES = 256


def gradient(config: Config, state: dict[str, Any] | None, policy: str, **changes: Any) -> Any:
    """The gradient of the whole loss of one batch as a vector, and the share it takes off."""
    adaptation = replace(config.adaptation, differentiation=policy, step_size=changes["step_size"])
    contrast = replace(config.contrast, weight=changes["weight"])
    config = replace(config, adaptation=adaptation, contrast=contrast)
    dataset = load_dataset(config.dataset)
    method = build_method(config, dataset.inputs)
    assert isinstance(method, MetaMAE)
    if state is not None:
        method.load_state_dict(state, strict=changes["weight"] > 0)
    method.double()
    rows = torch.linspace(0, len(dataset.need("pretrain")) - 1, EXAMPLES).long()
    batch = {
        name: x.double() if x.is_floating_point() else x
        for name, x in dataset.need("pretrain").batch(rows).items()
    }
    split = method.draw(EXAMPLES, generator(0, "second order"))
    method(batch, split).loss.backward()
    parts: list[Tensor] = [
        p.grad.flatten() for p in method.network.parameters() if p.grad is not None
    ]
    with torch.no_grad():
        losses = refine(method.network, method.meta.adapter, batch, split, final_loss=True).losses
    means = losses.mean(1)
    return torch.cat(parts), 1 - float(means[-1] / means[0])


def measure(config: Config, state: dict[str, Any] | None, step: int) -> list[dict[str, Any]]:
    """A row for every step size."""
    rows = []
    for step_size in STEP_SIZES:
        row: dict[str, Any] = {"dataset": config.dataset, "step": step, "step_size": step_size}
        for name, weight in (("query", 0.0), ("whole", config.contrast.weight)):
            changes = {"step_size": step_size, "weight": weight}
            kept = state if weight else _without_projector(state)
            exact, taken = gradient(config, kept, "unrolled", **changes)
            first, _ = gradient(config, kept, "first_order", **changes)
            row["taken_off"] = round(taken, 5)
            row[f"{name}_second_order"] = float((exact - first).norm() / exact.norm())
            row[f"{name}_cosine"] = float(torch.dot(exact, first) / exact.norm() / first.norm())
        rows.append(row)
        print(row, flush=True)
    return rows


def _without_projector(state: dict[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {name: value for name, value in state.items() if "contrast" not in name}


def make_page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    header = ("data", "step", "step size", "taken off", "second order", "cosine")
    header += ("with contrast", "cosine")
    lines = [
        (
            *(row["dataset"], str(row["step"]), f"{row['step_size']:g}"),
            f"{100 * row['taken_off']:.1f} %",
            *(f"{100 * row['query_second_order']:.2g} %", f"{row['query_cosine']:.4f}"),
            *(f"{100 * row['whole_second_order']:.2g} %", f"{row['whole_cosine']:.4f}"),
        )
        for row in report["rows"]
    ]
    table = "\n".join("| " + " | ".join(r) + " |" for r in (header, ("---",) * 8, *lines))
    return (
        "# The second-order part of the gradient\n\n"
        "`taken off`: share of the support loss that one refinement takes off. `second order`: "
        "norm of what first order leaves out over that of the exact gradient of encoder and "
        f"decoder, and the cosine of both; {EXAMPLES} examples, float64. `step` 0 are the initial "
        "weights.\n"
        f"\n{table}\n\n{report['hardware']}, torch {report['torch']}, revision "
        f"{report['revision']}; `benchmarks/second_order.py`.\n"
    )


def short_table(report: dict[str, Any]) -> str:
    """What docs/results.md shows: trained weights, sizes that do not overshoot much."""
    header = ("after training", *(f"step size {size:g}" for size in SHOWN))
    names = list(dict.fromkeys(row["dataset"] for row in report["rows"]))
    lines = []
    for name in names:
        last = max(row["step"] for row in report["rows"] if row["dataset"] == name)
        rows = {
            row["step_size"]: row
            for row in report["rows"]
            if (row["dataset"], row["step"]) == (name, last)
        }
        cells = (
            f"takes off {100 * rows[s]['taken_off']:.0f} %; second order "
            f"{100 * rows[s]['query_second_order']:.2g} %"
            for s in SHOWN
        )
        lines.append((name, *cells))
    return "\n".join("| " + " | ".join(r) + " |" for r in (header, ("---",) * 4, *lines))


def main() -> None:
    """Measure all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in options.runs:
        checkpoint = Checkpoint.load(run / "checkpoint.pt")
        rows += measure(checkpoint.config, None, 0)
        rows += measure(checkpoint.config, checkpoint.model, checkpoint.step)
    report = {
        "hardware": device_name(torch.device("cpu")),
        "revision": revision(),
        "torch": str(torch.__version__),
        "rows": rows,
    }
    write_json(RESULTS, report)
    write_text(RESULTS.with_suffix(".md"), make_page(report))


if __name__ == "__main__":
    main()
