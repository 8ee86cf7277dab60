"""One meta-gradient (inner steps and outer backward pass), ours beside other libraries'.

Three tables: time and peak memory against peers, peak memory against the number of steps, and
compiled against eager. ``benchmarks/peers.py`` says what is compared and in which form. Peers that
are not installed get a line that says so; the project does not depend on them.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from memory import peak_mib
from peers import Leaves, Problem
from rich.console import Console
from rich.table import Table
from timing import interleave, median, spread
from torch import Tensor

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    Truncated,
    Unrolled,
)
from metamae.checkpoint import write_json
from metamae.provenance import device_name, revision

RESULTS = Path(__file__).parent / "results"
# An optimum without a pull towards the start has no gradient in the start (see Implicit).
POLICIES: dict[str, GradientPolicy] = {
    "Unrolled": Unrolled(),
    "Checkpointed": Checkpointed(),
    "FiniteDifference": FiniteDifference(),
    "Implicit": Implicit(iterations=5, proximal=1e-3),
    "Truncated(1)": Truncated(1),
    "FirstOrder": FirstOrder(),
}
EXACT = ("unrolled", "Unrolled", "Checkpointed")
TOLERANCE = 1e-3
STEPS = (1, 5)
MEMORY_STEPS = (1, 2, 5, 10, 20)
NOTES = """\
Error: the largest, over the meta-gradient's tensors, of max|g - reference| / max|reference|; the
reference is the exact meta-gradient in float64. The policies below Checkpointed approximate it by
design; Implicit answers another question (the derivative of an optimum that pulls to its start),
so its error is a distance and no mistake. Memory: most bytes alive at once above those before."""


@dataclass(frozen=True)
class Way:
    """One way to take a problem's meta-gradient."""

    library: str
    policy: str
    form: str
    run: Callable[[], Leaves]


def ours(problem: Problem, steps: int, policy: GradientPolicy) -> Leaves:
    adapter = LatentAdapter(problem.step_size, steps=steps, differentiation=policy)
    problem.query(adapter(problem.copies(), problem.support).latent).mean().backward()
    return problem.gradients()


def ways(problem: Problem, steps: int, libraries: Mapping[str, Any]) -> list[Way]:
    """Everything that takes this meta-gradient here; exact ones first."""
    hand, one = partial(peers.by_hand, problem, steps), problem.network is not None
    vmap = "vmap" if one else "batched"
    rows = [
        Way("torch.autograd", "unrolled", "batched", hand),
        Way("torch.func", "unrolled", vmap, partial(peers.functional, problem, steps)),
    ]
    forms: dict[str, Callable[..., Leaves]] = {"batched": peers.batched}
    if one:
        forms["task by task"] = peers.task_by_task
        by_one = partial(peers.task_by_task, problem, steps, peers.by_hand_one)
        rows.append(Way("torch.autograd", "unrolled", "task by task", by_one))
    for name, library in libraries.items():
        adapt = getattr(peers, f"use_{name}")(library)
        rows += [
            Way(name, "unrolled", form, partial(run, problem, steps, adapt))
            for form, run in forms.items()
        ]
    rows += [
        Way("metalearn", name, "batched", partial(ours, problem, steps, policy))
        for name, policy in POLICIES.items()
    ]
    rows.append(Way("torch.autograd", "first order", "batched", partial(hand, first_order=True)))
    if "learn2learn" in libraries:
        adapt = peers.use_learn2learn(libraries["learn2learn"], first_order=True)
        run = partial(peers.batched, problem, steps, adapt)
        rows.append(Way("learn2learn", "first order", "batched", run))
    return rows


def error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest relative error of a tensor."""
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, reference, strict=True)
    )


def against_peers(
    build: Callable[[torch.device, torch.dtype], Problem],
    steps: int,
    libraries: Mapping[str, Any],
    device: torch.device,
    rounds: int,
) -> list[dict[str, Any]]:
    problem = build(device, torch.float32)
    reference = peers.by_hand(build(device, torch.float64), steps)
    found = ways(problem, steps, libraries)
    sides = {str(number): way.run for number, way in enumerate(found)}
    times = interleave(sides, device, rounds=rounds, warmup=2)
    return [
        {
            "task": problem.name,
            "library": way.library,
            "policy": way.policy,
            "form": way.form,
            "steps": steps,
            "ms": round(median(times[key]), 2),
            "ms_spread": round(spread(times[key]), 2),
            "peak_mib": peak_mib(way.run, device),
            "max_relative_error": float(f"{error(way.run(), reference):.1e}"),
        }
        for (key, way) in zip(sides, found, strict=True)
    ]


def memory_against_steps(problem: Problem, device: torch.device) -> list[dict[str, Any]]:
    """Peak MiB of every policy for every number of steps."""
    return [
        {"policy": name}
        | {str(n): peak_mib(partial(ours, problem, n, policy), device) for n in MEMORY_STEPS}
        for name, policy in POLICIES.items()
    ]


def compiled_against_eager(
    problem: Problem, steps: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Inner loop and outer loss in one compiled graph, and the same code run eagerly."""
    adapter = LatentAdapter(problem.step_size, steps=steps)

    def objective(leaves: Leaves) -> Tensor:
        return problem.query(adapter(leaves, problem.support).latent).mean()

    def backward(function: Callable[[Leaves], Tensor]) -> Leaves:
        function(problem.copies()).backward()
        return problem.gradients()

    compiled = torch.compile(objective, fullgraph=True)
    sides = {"eager": partial(backward, objective), "compiled": partial(backward, compiled)}
    start = interleave({"first call": sides["compiled"]}, device, rounds=1, warmup=0)
    times = interleave(sides, device, rounds=rounds, warmup=2)
    eager = [gradient.double() for gradient in sides["eager"]()]
    return [
        {
            "mode": mode,
            "steps": steps,
            "ms": round(median(times[mode]), 2),
            "ms_spread": round(spread(times[mode]), 2),
            "peak_mib": peak_mib(run, device),
            "max_relative_difference": float(f"{error(run(), eager):.1e}"),
            "first_call_s": round(start["first call"][0] / 1000, 1) if mode == "compiled" else 0.0,
        }
        for mode, run in sides.items()
    ]


@pytest.mark.filterwarnings("default")  # peers are older than the torch they meet
def test_adapter(device: torch.device, tables: list[str]) -> None:
    rounds = 9 if device.type == "cpu" else 50
    loaded = {name: peers.load(name) for name in peers.PEERS}
    libraries = {name: library for name, (library, _) in loaded.items() if library is not None}
    rows = [
        row
        for build in (peers.mlp, peers.decoder)
        for steps in STEPS
        for row in against_peers(build, steps, libraries, device, rounds)
    ]
    problem = peers.decoder(device, torch.float32)
    report: dict[str, Any] = {
        "hardware": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": revision(),
        "rounds": rounds,
        "peers": {name: version for name, (_, version) in loaded.items()},
        "rows": rows,
        "memory": memory_against_steps(problem, device),
        "compiled": compiled_against_eager(problem, 1, device, 2 * rounds),
    }
    write_json(RESULTS / f"adapter-{device.type}.json", report)
    (RESULTS / f"adapter-{device.type}.md").write_text(markdown(report))
    tables += [terminal(title, part) for title, part in parts(report)]
    for row in rows:
        if row["policy"] in EXACT:
            assert row["max_relative_error"] < TOLERANCE, row
    flat = {row["policy"]: row for row in report["memory"]}
    for name in ("Checkpointed", "Implicit", "Truncated(1)", "FirstOrder"):
        assert flat[name]["20"] < 1.2 * flat[name]["2"], flat[name]


def parts(report: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every table's title and rows."""
    found = []
    for task in dict.fromkeys(row["task"] for row in report["rows"]):
        for steps in STEPS:
            chosen = [r for r in report["rows"] if (r["task"], r["steps"]) == (task, steps)]
            shown = [{k: v for k, v in r.items() if k not in ("task", "steps")} for r in chosen]
            found.append((f"One meta-gradient: {task}, steps={steps}", shown))
    memory = [
        {"policy": row["policy"]} | {f"{n} steps": row[str(n)] for n in MEMORY_STEPS}
        for row in report["memory"]
    ]
    found.append(("Peak MiB against steps: decoder", memory))
    found.append(("Compiled against eager: decoder, Unrolled", report["compiled"]))
    return found


def terminal(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    head = ", ".join(f"{key} {report[key]}" for key in ("torch", "date", "revision", "rounds"))
    lines = ["# Latent adapter", "", f"{report['hardware']}; {head}.", "", NOTES, ""]
    lines += [f"- {name}: {version}" for name, version in report["peers"].items()]
    for title, rows in parts(report):
        bars = ["---" if isinstance(value, str) else "---:" for value in rows[0].values()]
        lines += ["", f"## {title}", "", f"| {' | '.join(rows[0])} |", f"| {' | '.join(bars)} |"]
        lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    return "\n".join(lines) + "\n"
