"""Runs a sweep: what is missing, one cell after the other or several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from metamae.data import load_dataset
from metamae.data.dataset import Dataset
from metamae.errors import ConfigError
from metamae.experiments.cell import is_current, run_cell
from metamae.experiments.plan import Cell, Sweep
from metamae.files import read_json, write_json, write_text
from metamae.progress import Nested, Reporter, Stage
from metamae.report.rows import Key, Result, read_results, write_results
from metamae.training.allocator import keep_freed_memory

RESULTS = "results.json"
FAILURES = "failures.json"
TRACEBACK = "error.txt"


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A sweep in an output folder.

    Attributes:
        sweep: What to run.
        out: Folder of the result file, the failures, and a folder per cell.
        device: Where to train.
        data_dir: Folder of full DABS data.
        fail_fast: Raise the first error of a cell, instead of going on with the others.
        workers: Cells at once, each in a process of its own with one thread. With 1, cells run in
            this process with its threads. Sums depend on the number of threads, so bits do too.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_dir: Path | None = None
    workers: int = 1
    fail_fast: bool = False

    def __post_init__(self) -> None:
        """Check the number of workers."""
        if self.workers < 1:
            raise ConfigError(f"expected at least 1 worker, got {self.workers}")

    def run(self, reporter: Reporter) -> tuple[list[Result], dict[str, str]]:
        """Run what is missing; every finished cell is on disk before the next begins.

        Returns:
            All rows of the sweep's cells, and the errors of the cells that failed by name.

        Raises:
            CheckpointError: a folder holds a run with other settings.
            Exception: with ``fail_fast``, what made a cell fail.
            DataError: a damaged result file.
        """
        cells = self.sweep.cells()
        rows = {row.key: row for row in read_results(self.out / RESULTS)}
        missing = {cell.name: self._missing(cell, rows) for cell in cells}
        todo = [cell for cell in cells if missing[cell.name]]
        failures = self._old_failures({cell.name for cell in cells} - {cell.name for cell in todo})
        start = time.perf_counter()
        with reporter.stage(
            "sweep", total=len(cells), done=len(cells) - len(todo), unit="cells"
        ) as stage:
            for number, (cell, outcome) in enumerate(
                self._run_cells(todo, missing, stage), start=1
            ):
                if isinstance(outcome, Exception):
                    if self.fail_fast:
                        raise outcome
                    failures[cell.name] = self._record(cell, outcome)
                else:
                    failures.pop(cell.name, None)
                    rows |= {row.key: row for row in outcome}
                    write_results(self.out / RESULTS, rows.values())
                self._write_failures(failures)
                left = (time.perf_counter() - start) / number * (len(todo) - number)
                reporter.say(
                    _line(cell, outcome, len(cells) - len(todo) + number, len(cells), left)
                )
                stage.advance()
        wanted = {key for cell in cells for key in cell.keys}
        return [row for key, row in rows.items() if key in wanted], failures

    def _missing(self, cell: Cell, rows: dict[Key, Result]) -> list[Key]:
        folder = self.out / cell.name
        return [
            key for key in cell.keys if key not in rows or not is_current(rows[key], cell, folder)
        ]

    def _run_cells(
        self, todo: list[Cell], missing: dict[str, list[Key]], stage: Stage
    ) -> Iterator[tuple[Cell, list[Result] | Exception]]:
        jobs = [
            _Job(cell, self.out / cell.name, tuple(missing[cell.name]), self.device, self.data_dir)
            for cell in todo
        ]
        if self.workers > 1:
            yield from _run_parallel(jobs, self.workers)
            return
        for job in jobs:
            try:
                yield job.cell, job.run(Nested(stage))
            except Exception as fault:
                yield job.cell, fault

    def _old_failures(self, finished: set[str]) -> dict[str, str]:
        """Failures of other sweeps in this folder; ours are tried again."""
        path = self.out / FAILURES
        try:
            known = read_json(path) if path.exists() else {}
        except ValueError:
            known = {}  # a record of what is tried again anyway
        errors = known if isinstance(known, dict) else {}
        ours = {cell.name for cell in self.sweep.cells()}
        return {
            name: error
            for name, error in errors.items()
            if name not in ours and isinstance(error, str)
        }

    def _record(self, cell: Cell, fault: Exception) -> str:
        text = "".join(traceback.format_exception(fault))
        write_text(self.out / cell.name / TRACEBACK, text)
        return f"{type(fault).__name__}: {' '.join(str(fault).split())}"

    def _write_failures(self, failures: dict[str, str]) -> None:
        if failures:
            write_json(self.out / FAILURES, failures)
        else:
            (self.out / FAILURES).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to run a cell."""

    cell: Cell
    run_dir: Path
    wanted: tuple[Key, ...]
    device: torch.device
    data_dir: Path | None

    def run(self, reporter: Reporter | None = None) -> list[Result]:
        rows = run_cell(
            self.cell,
            self.run_dir,
            lambda name, size: _load(name, size, self.data_dir),
            device=self.device,
            wanted=self.wanted,
            reporter=reporter,
        )
        (self.run_dir / TRACEBACK).unlink(missing_ok=True)
        return rows


@lru_cache(maxsize=4)
def _load(name: str, token_size: tuple[int, ...], data_dir: Path | None) -> Dataset:
    return load_dataset(name, data_dir=data_dir, token_size=token_size)


def _run_parallel(
    jobs: list[_Job], workers: int
) -> Iterator[tuple[Cell, list[Result] | Exception]]:
    """Run jobs in processes; one that dies costs its cell (and those beside it), not the sweep."""
    waiting = list(reversed(jobs))
    running: dict[Future[list[Result]], _Job] = {}
    pool = _pool(workers)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                running[pool.submit(job.run)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            faults = [future.exception() for future in done]
            if any(isinstance(fault, BrokenProcessPool) for fault in faults):
                wait(running)  # the pool is lost, and with it whatever it still ran
                pool.shutdown()
                done, pool = set(running), _pool(workers)
            for future in done:
                job, fault = running.pop(future), future.exception()
                if isinstance(fault, Exception):
                    yield job.cell, fault
                else:
                    yield job.cell, future.result()
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Read by the libraries of the new processes when they are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )


def _start_worker(parent: int) -> None:
    """One thread; ends with its parent, however that ends; Ctrl-C is the parent's to handle."""
    torch.set_num_threads(1)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _line(
    cell: Cell, outcome: list[Result] | Exception, number: int, total: int, left: float
) -> str:
    head = f"[{number}/{total}] {cell.name}"
    if isinstance(outcome, Exception):
        return f"{head}: FAILED, {type(outcome).__name__}: {' '.join(str(outcome).split())}"
    seconds = outcome[0].pretrain_seconds if outcome else 0.0
    values = ", ".join(
        f"{row.protocol} {100 * row.value:.1f}"
        for row in outcome
        if row.transfer == outcome[0].transfer
    )
    return f"{head}: {values} (pretrained in {seconds:.0f} s; {_duration(left)} left)"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
