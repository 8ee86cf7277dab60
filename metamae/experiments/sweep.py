"""Runs a sweep: what is missing, one cell after the other or several at once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from metamae.config.names import known_methods
from metamae.data import load_dataset
from metamae.data.dataset import Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import ConfigError, MetamaeError
from metamae.experiments.cell import is_current, run_cell
from metamae.experiments.executors import LOCAL, Executor, connected, run_on_cluster
from metamae.experiments.own_data import OwnData, forget
from metamae.experiments.plan import Cell, Sweep
from metamae.experiments.workers import choose_workers, limited_threads, run_side_by_side
from metamae.files import read_json, write_json, write_text
from metamae.locks import locked
from metamae.progress import Nested, Reporter, Stage
from metamae.report.rows import Key, Result, read_results, write_results
from metamae.training.run_folder import CONFIG

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
        workers: Cells at once, each in a process of its own; ``None`` for as many as there are
            cores, on a CPU. With 1, cells run in this process.
        threads: Threads of each cell on a CPU. Sums, and so bits, depend on it; not on ``workers``.
        executor: Where the cells are run: in processes of this machine, or on a cluster.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_dir: Path | None = None
    workers: int | None = None
    threads: int = 1
    fail_fast: bool = False
    executor: Executor = LOCAL

    def __post_init__(self) -> None:
        """Check the numbers of workers and threads."""
        choose_workers(self.workers, self.device)
        if self.threads < 1:
            raise ConfigError(f"expected at least 1 thread, got {self.threads}")

    def run(self, reporter: Reporter) -> tuple[list[Result], dict[str, str]]:
        """Run what is missing; every finished cell is on disk before the next begins.

        Returns:
            All rows of the sweep's cells, and the errors of the cells that failed by name.

        Raises:
            CheckpointError: a folder holds a run with other settings.
            Exception: with ``fail_fast``, what made a cell fail.
            DataError: a damaged result file.
            LockedError: another process is at work on the folder.
        """
        _load.cache_clear()  # what lies in files may have changed since an earlier run
        forget()
        for own in self._own.values():
            for remark in own.opened().remarks:
                reporter.say(f"{own.name}: {remark}")
        cells = self.sweep.cells()
        with locked(self.out):
            return self._run(cells, reporter)

    @property
    def _own(self) -> dict[str, OwnData]:
        return {name: source.own for name, source in self.sweep.datasets.items() if source.own}

    def _run(self, cells: list[Cell], reporter: Reporter) -> tuple[list[Result], dict[str, str]]:
        rows = {row.key: row for row in read_results(self.out / RESULTS)}
        data = _Fingerprints(self.data_dir, self._own)
        missing = {cell.name: self._missing(cell, rows, data) for cell in cells}
        for line in data.unknown:
            reporter.say(f"kept the rows of data that cannot be looked at: {line}")
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

    def _missing(self, cell: Cell, rows: dict[Key, Result], data: _Fingerprints) -> list[Key]:
        folder, size = self.out / cell.name, cell.config.token_size
        return [
            key
            for key in cell.keys
            if key not in rows
            or not is_current(rows[key], cell, folder, lambda name: data.of(name, size))
        ]

    def _run_cells(
        self, todo: list[Cell], missing: dict[str, list[Key]], stage: Stage
    ) -> Iterator[tuple[Cell, list[Result] | Exception]]:
        jobs = [
            _Job(cell, self.out / cell.name, tuple(missing[cell.name]), self.device, self.data_dir)
            for cell in todo
        ]
        if self.executor != LOCAL and jobs:
            yield from self._run_on_cluster(jobs, stage)
            return
        workers = min(choose_workers(self.workers, self.device), max(1, len(jobs)))
        if workers > 1:
            # The longest first, so that the last ones end together.
            methods = known_methods()
            jobs.sort(
                key=lambda job: (job.cell.config.seed, -methods.index(job.cell.config.method))
            )
            yield from (
                (job.cell, outcome)
                for job, outcome in run_side_by_side(jobs, workers, self.threads, stage)
                if isinstance(job, _Job)
            )
            return
        with limited_threads(self.threads, self.device):
            for job in jobs:
                try:
                    yield job.cell, job.run(Nested(stage))
                except Exception as fault:
                    yield job.cell, fault

    def _run_on_cluster(
        self, jobs: list[_Job], stage: Stage
    ) -> Iterator[tuple[Cell, list[Result] | Exception]]:
        with connected(self.executor, self.workers, self.threads) as client:
            for number, outcome in run_on_cluster(jobs, client, self.out, self.threads, stage):
                job = jobs[number]
                if not isinstance(outcome, Exception) and not (job.run_dir / CONFIG).exists():
                    # Made elsewhere: what the rows are of is all that is kept of the run.
                    job.run_dir.mkdir(parents=True, exist_ok=True)
                    write_text(job.run_dir / CONFIG, job.cell.config.to_yaml())
                yield job.cell, outcome

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

    @property
    def name(self) -> str:
        return self.cell.name

    def moved(self, run_dir: Path) -> _Job:
        return replace(self, run_dir=run_dir)

    def run(self, reporter: Reporter) -> list[Result]:
        rows = run_cell(
            self.cell,
            self.run_dir,
            self._load,
            device=self.device,
            wanted=self.wanted,
            reporter=reporter,
        )
        (self.run_dir / TRACEBACK).unlink(missing_ok=True)
        return rows

    def _load(self, name: str, token_size: tuple[int, ...]) -> Dataset:
        own = self.cell.own
        if own is not None and own.name == name:
            return own.dataset()
        return _load(name, token_size, self.data_dir)


class _Fingerprints:
    """Fingerprints of data sets by name, each computed once.

    Attributes:
        unknown: Why some cannot be had, a line each.
    """

    def __init__(self, data_dir: Path | None, own: dict[str, OwnData]) -> None:
        self.data_dir = data_dir
        self.own = own
        self.known: dict[str, str] = {}
        self.unknown: list[str] = []

    def of(self, name: str, token_size: tuple[int, ...]) -> str:
        """The fingerprint, empty where the data cannot be read."""
        if name not in self.known:
            try:
                own = self.own.get(name)
                found = own.dataset() if own else _load(name, token_size, self.data_dir)
                self.known[name] = fingerprint(found)
            except (MetamaeError, OSError) as fault:
                self.known[name] = ""
                self.unknown.append(" ".join(str(fault).split()))
        return self.known[name]


@lru_cache(maxsize=4)
def _load(name: str, token_size: tuple[int, ...], data_dir: Path | None) -> Dataset:
    return load_dataset(name, data_dir=data_dir, token_size=token_size)


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
