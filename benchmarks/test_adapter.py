"""One meta-gradient (inner steps and outer backward pass), ours beside other libraries'.

Three tables: time and peak memory against peers, peak memory against the number of steps, and
compiled against eager. ``benchmarks/peers.py`` says what is compared and in which form. Peers that
are not installed get a line that says so; the project does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import pytest
import torch
from memory import peak_mib
from peers import Leaves, Problem, Run
from rows import RESULTS, origin
from tables import markdown, terminal
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
from metamae.files import write_json, write_text
from metamae.training.provenance import device_name

EXACT = ("unrolled", "Unrolled", "Checkpointed")
FLAT = ("Checkpointed", "FiniteDifference", "Implicit", "Truncated(1)", "FirstOrder")
TOLERANCE = 1e-3
STEPS = (1, 5)
ROUNDS = {"cpu": {"mlp": 21, "decoder": 5}, "cuda": {"mlp": 50, "decoder": 50}}
HAND_ROUNDS = {"mlp": 300, "decoder": 20}
MEMORY_STEPS = (1, 2, 5, 10, 20)
NOTES = """\
Error: the largest, over the meta-gradient's tensors, of max|g - reference| / max|reference|; the
reference is the exact meta-gradient in float64. From FiniteDifference on, policies approximate it
by design; Implicit answers another question (the derivative of an optimum with a pull to its
start), so its error is a distance, no mistake. Memory: most bytes alive at once above those before.
Times of one table were taken in one process, every way once per round."""


@dataclass(frozen=True)
class Way:
    """One way to take a problem's meta-gradient."""

    library: str
    policy: str
    form: str
    run: Run


def policies(problem: Problem, steps: int) -> dict[str, GradientPolicy]:
    """Ours. The optimum with a pull of 1 / (n a) is what n steps of size a come near to."""
    return {
        "Unrolled": Unrolled(),
        "Checkpointed": Checkpointed(),
        "FiniteDifference": FiniteDifference(),
        "Implicit": Implicit(iterations=5, proximal=1 / (steps * problem.step_size)),
        "Truncated(1)": Truncated(1),
        "FirstOrder": FirstOrder(),
    }


def ours(problem: Problem, policy: GradientPolicy) -> Run:
    adapter = LatentAdapter(problem.step_size, differentiation=policy)

    def run(steps: int) -> Leaves:
        refined = adapter(problem.copies(), problem.support, steps=steps).latent
        problem.query(refined).mean().backward()
        return problem.gradients()

    return run


def ways(problem: Problem, steps: int, libraries: Mapping[str, Any]) -> list[Way]:
    """Everything that takes this meta-gradient here; exact ones first."""
    forms, vmap = {"batched": peers.batched}, "batched"
    if problem.network is not None:
        forms["task by task"], vmap = peers.task_by_task, "vmap"
    rows = [
        Way("torch.autograd", "unrolled", "batched", peers.hand_batched(problem)),
        Way("torch.func", "unrolled", vmap, peers.functional(problem)),
    ]
    if problem.network is not None:
        run = peers.task_by_task(problem, peers.hand_one)
        rows.append(Way("torch.autograd", "unrolled", "task by task", run))
    for name, library in libraries.items():
        use = getattr(peers, f"use_{name}")(library)
        rows += [Way(name, "unrolled", form, make(problem, use)) for form, make in forms.items()]
    rows += [
        Way("metalearn", name, "batched", ours(problem, policy))
        for name, policy in policies(problem, steps).items()
    ]
    run = peers.hand_batched(problem, first_order=True)
    rows.append(Way("torch.autograd", "first order", "batched", run))
    if "learn2learn" in libraries:
        use = peers.use_learn2learn(libraries["learn2learn"], first_order=True)
        rows.append(Way("learn2learn", "first order", "batched", peers.batched(problem, use)))
    return rows


def error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest relative error of a tensor."""
    worst = max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, reference, strict=True)
    )
    return float(f"{worst:.1e}")


def against_peers(
    build: Callable[[torch.device, torch.dtype], Problem],
    steps: int,
    libraries: Mapping[str, Any],
    device: torch.device,
    rounds: int,
) -> list[dict[str, Any]]:
    problem = build(device, torch.float32)
    reference = peers.hand_batched(build(device, torch.float64))(steps)
    found = ways(problem, steps, libraries)
    sides = {str(number): partial(way.run, steps) for number, way in enumerate(found)}
    times = interleave(sides, device, rounds=rounds, warmup=1).wall
    rows = []
    for way, (key, side) in zip(found, sides.items(), strict=True):
        peak, gradient = peak_mib(side, device)
        rows.append(
            {
                "task": problem.name,
                "library": way.library,
                "policy": way.policy,
                "form": way.form,
                "steps": steps,
                "ms": round(median(times[key]), 2),
                "ms_spread": round(spread(times[key]), 2),
                "peak_mib": peak,
                "max_relative_error": error(gradient, reference),
            }
        )
    return rows


def memory_against_steps(problem: Problem, device: torch.device) -> list[dict[str, Any]]:
    """Peak MiB of every policy for every number of steps."""
    rows = {name: {"policy": name} for name in policies(problem, 1)}
    for steps in MEMORY_STEPS:
        for name, policy in policies(problem, steps).items():
            run = ours(problem, policy)
            run(1)
            rows[name][f"{steps} steps"], _ = peak_mib(partial(run, steps), device)
    return list(rows.values())


def compiled_against_eager(
    problem: Problem, steps: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Inner loop and outer loss in one compiled graph, and the same code run eagerly."""
    adapter = LatentAdapter(problem.step_size, steps=steps)

    def objective(leaves: Leaves) -> Tensor:
        return problem.query(adapter(leaves, problem.support).latent).mean()

    def meta_gradient(function: Callable[[Leaves], Tensor]) -> Leaves:
        function(problem.copies()).backward()
        return problem.gradients()

    compiled = torch.compile(objective, fullgraph=True)
    modes = {"eager": objective, "compiled": compiled}
    sides = {mode: partial(meta_gradient, function) for mode, function in modes.items()}
    first = interleave(sides, device, rounds=1, warmup=0).wall
    times = interleave(sides, device, rounds=rounds, warmup=2).wall
    eager, rows = [gradient.double() for gradient in sides["eager"]()], []
    for mode, side in sides.items():
        peak, gradient = peak_mib(side, device)
        rows.append(
            {
                "mode": mode,
                "steps": steps,
                "ms": round(median(times[mode]), 2),
                "ms_spread": round(spread(times[mode]), 2),
                "peak_mib": peak,
                "max_relative_difference": error(gradient, eager),
                "first_call_s": round(first[mode][0] / 1000, 2),
            }
        )
    return rows


def test_adapter_by_hand(device: torch.device, tables: list[str]) -> None:
    """What checks and generality cost: ``Unrolled`` beside hand-written autograd, in many turns."""
    rows = []
    for build in (peers.mlp, peers.decoder):
        problem = build(device, torch.float32)
        for steps in STEPS:
            sides = {"hand": peers.hand_batched(problem), "ours": ours(problem, Unrolled())}
            turns = {name: partial(run, steps) for name, run in sides.items()}
            rounds = HAND_ROUNDS[problem.name]
            times = interleave(turns, device, rounds=rounds).wall
            ratios = [b / a for a, b in zip(times["hand"], times["ours"], strict=True)]
            rows.append(
                {"task": problem.name, "steps": steps, "rounds": rounds}
                | {f"{name}_ms": round(median(found), 2) for name, found in times.items()}
                | {"ratio": round(median(ratios), 3), "ratio_spread": round(spread(ratios), 3)}
            )
            gradients = [run(steps) for run in sides.values()]
            assert error(gradients[1], [g.double() for g in gradients[0]]) < TOLERANCE
    report = {"hardware": device_name(device), "rows": rows} | origin()
    write_json(RESULTS / f"adapter-hand-{device.type}.json", report)
    tables.append(terminal("Unrolled beside hand-written autograd", rows))


@pytest.mark.filterwarnings("default")  # peers are older than the torch they meet
def test_adapter(device: torch.device, tables: list[str]) -> None:
    rounds = ROUNDS[device.type]
    loaded = {name: peers.load(name) for name in peers.PEERS}
    libraries = {name: library for name, (library, _) in loaded.items() if library is not None}
    rows = [
        row
        for build in (peers.mlp, peers.decoder)
        for steps in STEPS
        for row in against_peers(build, steps, libraries, device, rounds[build.__name__])
    ]
    problem = peers.decoder(device, torch.float32)
    report: dict[str, Any] = {
        "hardware": device_name(device),
        "rounds": rounds,
        "peers": {name: version for name, (_, version) in loaded.items()},
        "rows": rows,
        "memory": memory_against_steps(problem, device),
        "compiled": compiled_against_eager(problem, 1, device, 3 * rounds["decoder"]),
    } | origin()
    write_json(RESULTS / f"adapter-{device.type}.json", report)
    write_text(RESULTS / f"adapter-{device.type}.md", page(report))
    tables += [terminal(title, part) for title, part in parts(report)]
    for row in rows:
        if row["policy"] in EXACT:
            assert row["max_relative_error"] < TOLERANCE, row
    growth = {row["policy"]: row["20 steps"] - row["2 steps"] for row in report["memory"]}
    for name in FLAT:  # what is left is a latent or two per step
        assert growth[name] < 0.02 * growth["Unrolled"], growth


def parts(report: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every table's title and rows."""
    found = []
    for task in dict.fromkeys(row["task"] for row in report["rows"]):
        for steps in STEPS:
            chosen = [r for r in report["rows"] if (r["task"], r["steps"]) == (task, steps)]
            shown = [{k: v for k, v in r.items() if k not in ("task", "steps")} for r in chosen]
            found.append((f"One meta-gradient: {task}, steps={steps}", shown))
    found.append(("Peak MiB against steps: decoder", report["memory"]))
    found.append(("Compiled against eager: decoder, Unrolled", report["compiled"]))
    return found


def page(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    head = ", ".join(f"{key} {report[key]}" for key in ("torch", "date", "revision"))
    rounds = ", ".join(f"{count} ({task})" for task, count in report["rounds"].items())
    about = f"{report['hardware']}; {head}; rounds {rounds}."
    versions = [f"- {name}: {version}" for name, version in report["peers"].items()]
    return markdown("Latent adapter", "\n".join([about, "", NOTES, "", *versions]), parts(report))
