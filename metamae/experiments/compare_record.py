"""What is written of a comparison: files, rows, facts, and what to mind of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamae.data.dataset import Dataset
from metamae.evaluation.drawing import ALL, MOST_LABELS, Drawing
from metamae.experiments.compare_plan import Plan
from metamae.files import write_json
from metamae.report.label_curves import Decision
from metamae.report.label_figure import draw_label_curves
from metamae.report.label_page import Comparison, write_html, write_markdown
from metamae.training.provenance import device_name, revision
from metamae.version import __version__

ROWS, DECISION = "rows.json", "decision.json"
FIGURE, TABLE, PAGE = "compare.png", "compare.md", "compare.html"

FEW_STEPS, FEW_DRAWS, FEW_GROUPS = 200, 10, 8
"""Fewer are said beside the answer."""


def write_comparison(comparison: Comparison, plan: Plan, out: Path) -> None:
    """Write rows, figure, table and page."""
    write_json(out / ROWS, rows_of(comparison))
    draw_label_curves(comparison.curves, out / FIGURE)
    write_markdown(comparison, out / TABLE, FIGURE)
    config = plan.configs[next(method for method in plan.configs if method != "random")]
    write_html(comparison, out / PAGE, out / FIGURE, config.to_yaml())


def facts_of(dataset: Dataset, plan: Plan, device: torch.device, threads: int) -> dict[str, str]:
    """Of the data and the runs, by name."""
    trained = {m: c.training for m, c in plan.configs.items() if m != "random"}
    rows = [f"{part} {len(dataset.need(part))}" for part in ("pretrain", "train", "test")]
    return {
        "data": f"{dataset.name}, fingerprint {plan.data}",
        "rows": ", ".join(rows),
        "inputs": "; ".join(spec.describe_token() for spec in dataset.inputs),
        "pretraining": "; ".join(
            f"{method} {training.steps} steps of {training.batch_size}"
            for method, training in trained.items()
        ),
        "seeds, draws": f"{plan.seeds} seeds, {plan.draws} draws of labels",
        "machine": f"{device_name(device)}, {threads} threads a run",
        "versions": f"metamae {__version__} ({revision()}), torch {torch.__version__}",
    }


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """Everything measured as plain rows: one a stage, candidate, number of labels and seed."""
    curves = comparison.curves
    return [
        {
            "data": comparison.name,
            "stage": stage,
            "candidate": name,
            "labels": "all" if number == ALL else number,
            "seed": seed,
            "metric": curves.metric,
            "values": values.tolist(),
        }
        for (stage, name), by_number in curves.values.items()
        for number, table in by_number.items()
        for seed, values in enumerate(table)
    ]


def plain_decision(decision: Decision) -> Mapping[str, Any]:
    """A decision as it is kept."""
    return {
        "labels": "all" if decision.number == ALL else decision.number,
        "recommended": decision.recommended,
        "plain": decision.plain,
        "pretrained": decision.pretrained,
        "pays": decision.pays,
        "difference": decision.difference.value,
    }


def cautions_of(plan: Plan) -> list[str]:
    """What makes pretraining look useless or lucky."""
    cautions = []
    steps = max(config.training.steps for config in plan.configs.values())
    if steps < FEW_STEPS:
        cautions.append(
            f"{steps} steps of pretraining are few, and it has hardly begun; give more --minutes "
            "or --steps before you believe this"
        )
    if plan.draws < FEW_DRAWS:
        cautions.append(
            f"{plan.draws} draws of labels say little, whatever their intervals; give --draws "
            f"{FEW_DRAWS} or more"
        )
    return cautions


def remarks_of(dataset: Dataset, drawing: Drawing) -> list[str]:
    """What was limited."""
    remarks = []
    if drawing.by_class:
        names, counts = dataset.need_task().classes, drawing.counts()
        rare = min(range(len(counts)), key=lambda n: counts[n])
        remarks.append(
            f"The rarest class of the training rows, {names[rare]!r}, has {counts[rare]} of them: "
            "numbers of labels end where it has none left beside a validation cut, or where half "
            "of the rows are labelled."
        )
    if len(drawing.labels) > MOST_LABELS:
        remarks.append(f"All labels are {MOST_LABELS} of {len(drawing.labels)}, drawn once.")
    groups = None if drawing.groups is None else len(np.unique(drawing.groups))
    if groups is not None and groups < FEW_GROUPS:
        remarks.append(
            f"The training rows are of {groups} groups: few validation cuts of them differ, and "
            "intervals are wider than they look."
        )
    return remarks
