"""How long waiting threads should spin: MetaMAE steps on an idle machine and beside a busy process.

    PYTHONPATH=$PWD python benchmarks/waiting_threads.py

Every case runs in processes of its own, since GOMP_SPINCOUNT is read when torch is loaded, in turns
with the others. Medians go into ``results/waiting-threads.json``. Five minutes on two cores.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from rows import RESULTS, origin
from settings import Variant, configure, inputs_of, training_step
from timing import interleave

from metamae.files import write_json
from metamae.training.provenance import device_name

CPU = torch.device("cpu")
SETTINGS = {"paper/pamap2": 5, "pocket/sensors": 15}
SPINS = ("0", "1000", "3000", "30000", "libgomp's own")
REPEATS = 3


def step(setting: str) -> float:
    """Median milliseconds of an eager MetaMAE step in this process."""
    config = configure(setting, "metamae", Variant(), CPU)
    run = training_step(config, inputs_of(setting), CPU).run
    return statistics.median(interleave({"": run}, CPU, rounds=SETTINGS[setting]).wall[""])


def measured_apart(setting: str, spin: str) -> float:
    """The same in a new process whose threads spin for so many turns."""
    environment = {k: v for k, v in os.environ.items() if "OMP_WAIT" not in k and "GOMP" not in k}
    # Torch is loaded before metamae, which leaves what is not given at libgomp's own.
    given = {} if spin == SPINS[-1] else {"GOMP_SPINCOUNT": spin}
    done = subprocess.run(
        [sys.executable, __file__, setting],
        env=environment | given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that wants one core all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(setting: str, load: str) -> list[dict[str, Any]]:
    """A row for every length of spinning, measured in turns."""
    times: dict[str, list[float]] = {spin: [] for spin in SPINS}
    with busy_process() if load == "busy" else nullcontext():
        for spin in SPINS * REPEATS:
            times[spin].append(measured_apart(setting, spin))
    return [
        {"setting": setting, "load": load, "spin": spin}
        | {"ms": round(statistics.median(found), 1), "all_ms": sorted(found)}
        | origin()
        for spin, found in times.items()
    ]


def main() -> None:
    """Measure and write."""
    if len(sys.argv) == 2:
        print(step(sys.argv[1]))
        return
    rows = []
    for setting, load in product(SETTINGS, ("idle", "busy")):
        rows += compare(setting, load)
        print(setting, load, {row["spin"]: row["ms"] for row in rows[-len(SPINS) :]}, flush=True)
    write_json(RESULTS / "waiting-threads.json", {"hardware": device_name(CPU), "rows": rows})


if __name__ == "__main__":
    main()
