"""``metamae sweep``: run the experiments that a file lists."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from metamae.cli.options import add_places
from metamae.cli.terminal import make_console
from metamae.experiments.executors import Executor
from metamae.experiments.sweep import FAILURES, RESULTS, SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.experiments.workers import limited_threads
from metamae.progress import Reporter
from metamae.training.devices import choose_device
from metamae.training.provenance import device_name


def add_sweep(commands: Any) -> None:
    """Add ``metamae sweep``."""
    parser = commands.add_parser(
        "sweep",
        help="run the experiments of a YAML file, or what is missing of them",
        description="Run what is missing of the experiments that a YAML file lists. Kill it at any "
        "time: the same command goes on to the same results. A cell that fails is recorded, named "
        "at the end (exit code 1) and tried again next time.",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="sweep file, e.g. benchmarks/sweeps/pocket.yaml")
    add("--out", type=Path, help="output folder (default: runs/NAME of the file)")
    add("--workers", type=int, help="cells at once (default: as many as cores; 1 on a GPU)")
    add("--threads", type=int, default=1, help="threads of each cell on a CPU (default: 1)")
    add(
        "--executor",
        default="local",
        metavar="WHERE",
        help="local (default), dask:ADDRESS of a scheduler, or slurm; docs/scale.md",
    )
    add("--list", action="store_true", help="list the cells and stop")
    add_places(parser)
    parser.set_defaults(run=run_sweep, interrupted="stopped; the same command continues the sweep")


def run_sweep(options: argparse.Namespace) -> int:
    """Run ``metamae sweep``."""
    sweep = read_sweep(options.file)
    reporter = Reporter(make_console())
    if options.list:
        for cell in sweep.cells():
            reporter.say(f"{cell.name} -> {', '.join(cell.targets)}")
        return 0
    run = SweepRun(
        sweep=sweep,
        out=options.out or Path("runs") / options.file.stem,
        device=choose_device(options.device),
        data_dir=options.data_dir,
        workers=options.workers,
        threads=options.threads,
        executor=Executor.parse(options.executor),
    )
    with limited_threads(run.threads, run.device):
        reporter.say(f"{run.out} on {device_name(run.device)}")
    rows, failures = run.run(reporter)
    reporter.say(f"{len(rows)} results: {run.out / RESULTS}; next: metamae report {run.out}")
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    if failures:
        total = len(sweep.cells())
        print(
            f"error: {len(failures)} of {total} cells failed, see {run.out / FAILURES}; the same "
            "command tries them again",
            file=sys.stderr,
        )
    return 1 if failures else 0
