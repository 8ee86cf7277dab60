"""What an exact inner step keeps: peaks of a training step, and attention by length.

    pytest benchmarks/ --benchmark --device cpu -k memory
    pytest benchmarks/ --benchmark --device cpu -k "memory and attention"

Every test measures one row of ``results/memory-DEVICE.json``. Peaks are counted in bytes, each in a
process of its own, and do not depend on what else the machine does; times are processor times, in
turns in one process. ``alive.py`` shows what a peak consists of.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from memory import peak_mib
from rows import RESULTS, merged, origin
from settings import SHAPES, Variant, configure, inputs_of, training_step
from tables import markdown, terminal
from timing import interleave, middle
from torch import Tensor
from torch.nn import functional as F

from metalearn import Checkpointed, Unrolled, plain_attention, recomputed_attention
from metamae.files import write_json, write_text
from metamae.methods.objective import POLICIES
from metamae.model import transformer
from metamae.training.allocator import keep_freed_memory
from metamae.training.provenance import device_name

LENGTHS = (64, 128, 197, 256, 512, 1024, 2048, 4096)
TOKENS, HEADS, WIDTH = 4096, 4, 32
KEY = ("part", "setting", "device")
ORDER = ("step", "time", "attention")
Run = Callable[[], object]
GOAL = 1.6
TIMED = ("higgs", "pamap2", "librispeech")
STEPS: dict[str, tuple[str, Any, bool]] = {
    "mae": ("mae", Unrolled(), True),
    "kept": ("metamae", Unrolled(), False),
    "unrolled": ("metamae", Unrolled(recompute=True), True),
    "checkpointed": ("metamae", Checkpointed(recompute=True), True),
}
NOTES = f"""\
**step**: MiB alive at once above those before an eager float32 training step of Table 8's models at
the CPU's batch, each in a process of its own. `kept` is the unrolled inner step with every result
kept, attention maps too; `unrolled` and `checkpointed` are the policies as configured. `_ratio` is
over MAE's peak (goal: {GOAL}).

**time**: processor time of these steps in turns in one process with one thread; `_time` is the
median quotient over that of `kept`.

**attention**: forward pass, backward pass with a graph, and the derivative of that, of
`plain_attention` and `recomputed_attention`; forward and backward pass alone of torch's `fused`
kernel, which has no second derivative. {TOKENS} tokens in sequences of `tokens`, {HEADS} heads of
{WIDTH} channels, float32."""


@pytest.mark.parametrize("setting", SHAPES)
def test_memory_of_a_step(
    setting: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    if device.type != "cpu":
        pytest.skip("peaks on CUDA are in the overhead tables")
    name = f"paper/{setting}"
    peaks = {side: alone(peak_of, name, side) for side in STEPS}
    row = {"part": "step", "setting": name, "device": device.type}
    row |= {f"{side}_mib": peak for side, peak in peaks.items()}
    row |= {
        f"{side}_ratio": round(peak / peaks["mae"], 3)
        for side, peak in peaks.items()
        if side != "mae"
    }
    merge(row | origin() | {"threads": 1}, device, request)
    assert peaks["mae"] < peaks["unrolled"] < peaks["kept"]


@pytest.mark.parametrize("setting", TIMED)
def test_memory_against_time(
    setting: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    rounds = request.config.getoption("--rounds") or 5
    if device.type != "cpu":
        pytest.skip("processor times are those of a CPU")
    row = {"part": "time", "setting": f"paper/{setting}", "device": device.type}
    row |= alone(times_of, f"paper/{setting}", rounds)
    merge(row | {"rounds": rounds} | origin() | {"threads": 1}, device, request)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_memory_of_attention(
    tokens: int, device: torch.device, request: pytest.FixtureRequest
) -> None:
    rounds = request.config.getoption("--rounds") or 7
    size = max(1, TOKENS // tokens)
    sides = {
        "plain": lambda: twice(plain_attention, size, tokens, device),
        "recomputed": lambda: twice(recomputed_attention, size, tokens, device),
        "fused": lambda: once(F.scaled_dot_product_attention, size, tokens, device),
    }
    found = interleave(sides, device, rounds=rounds, warmup=1)
    times = found.cpu if device.type == "cpu" else found.wall
    row = {"part": "attention", "setting": f"{tokens} tokens", "device": device.type, "batch": size}
    row |= {f"{side}_ms": middle(values) for side, values in times.items()}
    row["time_ratio"] = quotient(times["recomputed"], times["plain"])
    row |= {f"{side}_mib": peak_mib(run, device)[0] for side, run in sides.items()}
    merge(row | {"rounds": rounds} | origin(), device, request)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process that has measured nothing yet; forked, so that torch is there at once.

    Take no step in this process before: threads do not survive.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def side_of(setting: str, side: str) -> Run:
    """A step under a policy, that was taken once."""
    torch.set_num_threads(1)
    method, policy, lean = STEPS[side]
    POLICIES["unrolled"] = policy
    step = training_step(
        configure(setting, method, Variant(), torch.device("cpu")),
        inputs_of(setting),
        torch.device("cpu"),
    ).run
    threshold = transformer.RECOMPUTED_FROM if lean else 2**62

    def run() -> None:
        transformer.RECOMPUTED_FROM = threshold
        step()

    run()
    return run


def peak_of(setting: str, side: str) -> float:
    """MiB of one step."""
    return peak_mib(side_of(setting, side), torch.device("cpu"))[0]


def times_of(setting: str, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time, and quotients over the step that keeps everything."""
    keep_freed_memory()
    sides = {side: side_of(setting, side) for side in STEPS}
    found = interleave(sides, torch.device("cpu"), rounds=rounds, warmup=0).cpu
    times = {f"{side}_ms": middle(values) for side, values in found.items()}
    lean = ("unrolled", "checkpointed")
    return times | {f"{side}_time": quotient(found[side], found["kept"]) for side in lean}


def quotient(times: list[float], others: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def arguments(size: int, tokens: int, device: torch.device) -> list[Tensor]:
    """Query, key and value as a projection makes them: views of one tensor."""
    draw = torch.Generator().manual_seed(0)
    projected = torch.randn(size, tokens, 3, HEADS, WIDTH, generator=draw).to(device)
    return [part.requires_grad_() for part in projected.permute(2, 0, 3, 1, 4).unbind()]


def once(attention: Any, size: int, tokens: int, device: torch.device) -> list[Tensor]:
    """Forward and backward pass."""
    inputs = arguments(size, tokens, device)
    return list(torch.autograd.grad(attention(*inputs).square().sum(), inputs))


def twice(attention: Any, size: int, tokens: int, device: torch.device) -> list[Tensor]:
    """And the derivative of the gradient."""
    inputs = arguments(size, tokens, device)
    total = attention(*inputs).square().sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    return list(torch.autograd.grad(gradients, inputs, [x.detach() for x in gradients]))


def merge(row: dict[str, Any], device: torch.device, request: pytest.FixtureRequest) -> None:
    """Put a row into the result file, and write the file's page."""
    path = RESULTS / f"memory-{device.type}.json"
    settings = [f"paper/{name}" for name in SHAPES] + [f"{length} tokens" for length in LENGTHS]
    rows = merged(
        path, [row], KEY, lambda r: (ORDER.index(r["part"]), settings.index(r["setting"]))
    )
    report = {"hardware": device_name(device), "goal": GOAL, "means": means(rows), "rows": rows}
    write_json(path, report)
    parts = [(part, [r for r in rows if r["part"] == part]) for part in ORDER]
    shown = [(part, found) for part, found in [("means", report["means"]), *parts] if found]
    title = "Memory of an exact inner step"
    write_text(path.with_suffix(".md"), markdown(title, f"{report['hardware']}.\n\n{NOTES}", shown))
    request.getfixturevalue("tables").append(terminal(row["setting"], [row]))


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean quotients over the settings."""
    steps = [row for row in rows if row["part"] == "step"]
    if not steps:
        return []
    keys = [key for key in steps[0] if key.endswith("_ratio")]
    found = {key: round(statistics.mean(row[key] for row in steps), 3) for key in keys}
    return [{"settings": len(steps)} | found]
