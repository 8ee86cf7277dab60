"""Two processes with one batch beside two runs with half of it each: what exchanging costs.

    PYTHONPATH=$PWD python benchmarks/processes.py     # minutes; wants two idle cores

Both kinds in turns, a thread a process. ``efficiency`` is the time of a step of two separate runs
at once, over that of one run of two processes which computes as many examples: 1 where averaging
gradients, the joint contrast, and waiting for each other cost nothing. Rows go to
``benchmarks/results/processes-cpu.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rows import RESULTS, Row, merged, origin

from metamae.files import write_json
from metamae.training.checkpoint import Checkpoint
from metamae.training.provenance import device_name
from metamae.training.run_folder import CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
PATH = RESULTS / "processes-cpu.json"
KEY = ("dataset", "method", "batch")


def command(dataset: str, method: str, steps: int, batch: int, out: Path) -> list[str]:
    """A run of the pocket preset."""
    settings = (f"training.steps={steps}", f"training.batch_size={batch}")
    options = [part for setting in settings for part in ("--set", setting)]
    named = ["pretrain", dataset, "--method", method, "--device", "cpu"]
    return ["-m", "metamae", *named, *options, "--out", str(out)]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A process of one thread."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, [str(ROOT), known]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    output = {"stdout": subprocess.DEVNULL, "env": environment}
    return subprocess.Popen([sys.executable, *arguments], **output)


def wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended.

    Raises:
        RuntimeError: one failed.
    """
    if codes := [code for process in processes if (code := process.wait())]:
        raise RuntimeError(f"expected every run to end well, got exit codes {codes}")


def seconds_a_step(out: Path) -> float:
    """Of a finished run."""
    checkpoint = Checkpoint.load(out / CHECKPOINT)
    return checkpoint.seconds / checkpoint.step


def joint(dataset: str, method: str, steps: int, batch: int, folder: Path) -> float:
    """A step of one run of two processes."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    wait([start([*torchrun, *command(dataset, method, steps, batch, folder / "joint")])])
    return seconds_a_step(folder / "joint")


def separate(dataset: str, method: str, steps: int, batch: int, folder: Path) -> float:
    """A step of the slower of two runs at once."""
    outs = [folder / "first", folder / "second"]
    wait([start(command(dataset, method, steps, batch // 2, out)) for out in outs])
    return max(seconds_a_step(out) for out in outs)


def measure(dataset: str, method: str, steps: int, batch: int, rounds: int) -> Row:
    """A row."""
    pairs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            both = (kind(dataset, method, steps, batch, Path(folder)) for kind in (joint, separate))
            pairs.append(tuple(both))
        print(dataset, method, *(f"{1000 * x:.1f} ms" for x in pairs[-1]), flush=True)
    ratios = [alone / together for together, alone in pairs]
    return {
        "dataset": dataset,
        "method": method,
        "joint_ms": round(1000 * statistics.median(pair[0] for pair in pairs), 2),
        "separate_ms": round(1000 * statistics.median(pair[1] for pair in pairs), 2),
        "efficiency": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "hardware": device_name(torch.device("cpu")),
        **origin(),
    }


def main() -> None:
    """Measure MAE and MetaMAE."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--datasets", nargs="+", default=["sensors"])
    parser.add_argument("--methods", nargs="+", default=["mae", "metamae"])
    parser.add_argument("--batch", type=int, default=64, help="of both processes (default: 64)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in options.datasets:
        for method in options.methods:
            row = measure(dataset, method, options.steps, options.batch, options.rounds)
            rows = merged(PATH, [row], KEY, lambda r: (r["batch"], r["dataset"], r["method"]))
            write_json(PATH, {"rows": rows})
            print(row, flush=True)


if __name__ == "__main__":
    main()
