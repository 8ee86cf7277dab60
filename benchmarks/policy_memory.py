"""Peak memory of exact MetaMAE steps under each policy beside MAE's, and page faults of a step.

    PYTHONPATH=$PWD python benchmarks/policy_memory.py       # about two minutes on one core

Writes benchmarks/results/policy-memory.json, whose numbers docs/measurements.md shows. Every number
is of an eager step on one thread in a process of its own; page faults and system time are those of
processes that return freed memory to the system, or keep it (`metamae.training.allocator`).
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from memory import peak_mib
from rows import RESULTS, origin
from settings import Variant, configure, inputs_of, training_step

from metamae.files import write_json
from metamae.training.allocator import keep_freed_memory
from metamae.training.provenance import device_name

CPU = torch.device("cpu")
SETTINGS = ("pamap2", "librispeech", "higgs")
POLICIES = ("unrolled", "checkpointed", "chunked")
STEPS = 5
Result = TypeVar("Result")


def faults(setting: str, keep: bool) -> dict[str, Any]:
    """Median page faults of a MetaMAE step, and the system's share of its processor time."""
    if keep and not keep_freed_memory():
        raise RuntimeError("expected Linux with glibc, whose allocator this compares")
    run = side(setting, "metamae", "unrolled")
    counts, shares = [], []
    for _ in range(STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF)
        run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        counts.append(after.ru_minflt - before.ru_minflt)
        system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
        shares.append(system / (system + user))
    return {
        "faults": statistics.median(counts),
        "system_share": round(statistics.median(shares), 3),
    }


def peak(setting: str, method: str, policy: str) -> float:
    """MiB of one step."""
    return peak_mib(side(setting, method, policy), CPU)[0]


def side(setting: str, method: str, policy: str) -> Callable[[], None]:
    """A training step on one thread that was taken once."""
    torch.set_num_threads(1)
    config = configure(setting, method, Variant(policy=policy), CPU)
    run = training_step(config, inputs_of(setting), CPU).run
    run()
    return run


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call it in a new process: memory that one has freed before changes what it asks for."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def measure(setting: str) -> dict[str, Any]:
    """One row."""
    methods = {"mae": ("mae", "unrolled")} | {one: ("metamae", one) for one in POLICIES}
    return {
        "setting": setting,
        "batch": configure(setting, "mae", Variant(), CPU).training.batch_size,
        "peak_mib": {name: alone(peak, setting, *one) for name, one in methods.items()},
        "returned": alone(faults, setting, False),
        "kept": alone(faults, setting, True),
    } | origin()


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rows = [measure(f"paper/{name}") for name in SETTINGS]
    write_json(RESULTS / "policy-memory.json", {"hardware": device_name(CPU), "rows": rows})
    for row in rows:
        print(row["setting"], row["peak_mib"], row["returned"], row["kept"])


if __name__ == "__main__":
    main()
