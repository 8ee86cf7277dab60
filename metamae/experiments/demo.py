"""The demo: a sweep with a time budget, timed steps, and pictures of what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metamae.config.names import known_methods
from metamae.data import load_dataset
from metamae.errors import ConfigError
from metamae.experiments.plan import Cell, Sweep
from metamae.experiments.sweep import SweepRun
from metamae.experiments.timing import Times, read_times, time_steps
from metamae.experiments.workers import choose_workers, limited_threads
from metamae.files import write_json
from metamae.locks import locked
from metamae.methods.mae import MAE
from metamae.progress import Reporter
from metamae.report.comparison import rank
from metamae.report.curves import draw_curves, draw_settings
from metamae.report.reconstructions import draw_reconstructions
from metamae.report.rows import DEFAULT, Result
from metamae.training.run_folder import CHECKPOINT, HISTORY, load_method, read_history

TIMES = "times.json"
"""Milliseconds a step by data set and method, measured before the first run."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A sweep of one variant and one protocol, as many seeds as fit a budget, and its pictures.

    Attributes:
        sweep: What to run, its seeds apart.
        out: Output folder.
        device: Where to train.
        data_dir: Folder of full DABS data.
        seeds: Number of seeds, or ``None`` for as many as fit ``budget`` (from 1 to ``max_seeds``).
        budget: Seconds of training when ``seeds`` is ``None``, shared equally by the data sets.
        max_seeds: Most seeds when ``seeds`` is ``None``.
        workers: Cells at once, see :class:`~metamae.experiments.sweep.SweepRun`.
        threads: Threads of each on a CPU.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_dir: Path | None = None
    seeds: int | None = None
    budget: float = 240.0
    max_seeds: int = 3
    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the number of seeds."""
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"expected at least 1 seed, got {self.seeds}")

    def run(self, reporter: Reporter) -> tuple[list[Result], Times]:
        """Time a step of every method, run what is missing, and draw it.

        Returns:
            Rows by data set, method and seed; and milliseconds a step by data set and method.

        Raises:
            Exception: what made a cell fail; nothing is run after it.
            LockedError: another process is at work on the folder.
        """
        with locked(self.out):
            return self._run(reporter)

    def _run(self, reporter: Reporter) -> tuple[list[Result], Times]:
        self._adopt_earlier_folders()
        times = self._time(reporter)
        by_count: dict[int, list[str]] = {}
        for name in self.sweep.datasets:
            by_count.setdefault(self._count_seeds(name, times[name]), []).append(name)
        rows: list[Result] = []  # of what was asked for, not of what else the folder holds
        for count, names in by_count.items():
            found, _ = self._runs(names, range(count)).run(reporter)
            rows += found
        order, methods = list(self.sweep.datasets), known_methods()
        for name in order:
            self._draw(name, [row for row in rows if row.dataset == name])
        rows.sort(key=lambda row: (order.index(row.dataset), rank(methods, row.method), row.seed))
        return rows, times

    def picture(self, dataset: str, name: str) -> Path:
        """Path of a picture: in the output folder, or in the data set's when there are several."""
        several = len(self.sweep.datasets) > 1
        return (self.out / dataset if several else self.out) / f"{name}.png"

    def _adopt_earlier_folders(self) -> None:
        """Move runs of earlier revisions, from ``DATASET/METHOD/seed-N`` to where cells lie."""
        for dataset in self.sweep.datasets:
            for method in self.sweep.methods:
                earlier, now = (
                    self.out / dataset / part for part in (method, f"{DEFAULT}/{method}")
                )
                # A variant of a sweep may have a method's name: its seeds lie one folder deeper.
                if any(earlier.glob("seed-*")) and not now.exists():
                    now.parent.mkdir(exist_ok=True)
                    earlier.rename(now)

    def _runs(self, names: Sequence[str], seeds: Sequence[int]) -> SweepRun:
        datasets = {name: self.sweep.datasets[name] for name in names}
        return SweepRun(
            sweep=replace(self.sweep, datasets=datasets, seeds=tuple(seeds)),
            out=self.out,
            device=self.device,
            data_dir=self.data_dir,
            workers=self.workers,
            threads=self.threads,
            fail_fast=True,
        )

    def _cells(self, name: str, seeds: Sequence[int] = (0,)) -> list[Cell]:
        return self._runs([name], seeds).sweep.cells()

    def _time(self, reporter: Reporter) -> Times:
        """Measured once and kept, so that a resumed demo has as many seeds as the first."""
        times = read_times(self.out / TIMES)
        for name in self.sweep.datasets:
            configs = [cell.config for cell in self._cells(name)]
            trained = {config.method for config in configs if config.training.steps > 0}
            if trained - times.setdefault(name, {}).keys():
                size = configs[0].token_size
                data = load_dataset(name, data_dir=self.data_dir, token_size=size)
                with limited_threads(self.threads, self.device):
                    times[name] = time_steps(configs, data, device=self.device, reporter=reporter)
                write_json(self.out / TIMES, times)
        return times

    def _count_seeds(self, name: str, times: Mapping[str, float]) -> int:
        """Seeds of a data set: those asked for, or as many as fit its share of the budget."""
        if self.seeds is not None:
            return self.seeds
        configs = [cell.config for cell in self._cells(name)]
        seconds = sum(
            times[config.method] * config.training.steps / 1000
            for config in configs
            if config.training.steps > 0
        )
        share = self.budget / len(self.sweep.datasets) * choose_workers(self.workers, self.device)
        fitting = int(share / seconds) if seconds > 0 else self.max_seeds
        return max(1, min(self.max_seeds, fitting))

    def _draw(self, name: str, rows: Sequence[Result]) -> None:
        """Curves of all trained methods; reconstructions of MetaMAE, or else of MAE."""
        trained = {(row.method, row.seed) for row in rows if row.steps > 0}
        seeds = tuple(sorted({seed for _, seed in trained}))
        cells: dict[str, list[Cell]] = {}
        for cell in self._cells(name, seeds) if seeds else []:
            if (cell.config.method, cell.config.seed) in trained:
                cells.setdefault(cell.config.method, []).append(cell)
        if not cells:
            return
        histories = {
            method: [read_history(self.out / cell.name / HISTORY) for cell in cells[method]]
            for method in known_methods()
            if method in cells
        }
        draw_curves(histories, self.picture(name, "curves"))
        if "metamae" in cells and cells["metamae"][0].config.learn.settings:
            draw_settings({"metamae": histories["metamae"]}, self.picture(name, "settings"))
        of_values = [m for m in cells if cells[m][0].config.target.kind == "values"]
        shown = next((method for method in ("metamae", "mae") if method in of_values), None)
        if shown is not None:
            cell = cells[shown][0]
            dataset = load_dataset(name, data_dir=self.data_dir, token_size=cell.config.token_size)
            method = load_method(self.out / cell.name / CHECKPOINT, dataset.inputs)
            assert isinstance(method, MAE)
            picture = self.picture(name, "reconstructions")
            draw_reconstructions(method, dataset.need("test"), picture)
