"""The demo: a sweep with a time budget, and pictures of what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metamae.config.schema import known_methods
from metamae.data import load_dataset
from metamae.errors import ConfigError
from metamae.experiments.plan import Cell, Sweep
from metamae.experiments.sweep import RESULTS, SweepRun
from metamae.locks import locked
from metamae.methods.mae import MAE
from metamae.progress import Reporter
from metamae.report.comparison import rank
from metamae.report.curves import draw_curves, draw_settings
from metamae.report.reconstructions import draw_reconstructions
from metamae.report.rows import DEFAULT, Result, read_results
from metamae.training.run_folder import CHECKPOINT, HISTORY, load_method, read_history


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A sweep of one variant and one protocol, as many seeds as fit a budget, and its pictures.

    Attributes:
        sweep: What to run, its seeds apart.
        out: Output folder.
        device: Where to train.
        data_dir: Folder of full DABS data.
        seeds: Number of seeds, or ``None`` for as many as fit ``budget`` (from 1 to ``max_seeds``).
        budget: Seconds for all of it when ``seeds`` is ``None``, shared equally by the data sets.
        max_seeds: Most seeds when ``seeds`` is ``None``.
        workers: Cells at once, see :class:`~metamae.experiments.sweep.SweepRun`.
    """

    sweep: Sweep
    out: Path
    device: torch.device
    data_dir: Path | None = None
    seeds: int | None = None
    budget: float = 240.0
    max_seeds: int = 3
    workers: int = 1

    def __post_init__(self) -> None:
        """Check the number of seeds."""
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"expected at least 1 seed, got {self.seeds}")

    def run(self, reporter: Reporter) -> list[Result]:
        """Run what is missing, one seed of all methods after the other, and draw it.

        Returns:
            Rows by data set, method and seed.

        Raises:
            Exception: what made a cell fail; nothing is run after it.
            LockedError: another process is at work on the folder.
        """
        with locked(self.out):
            return self._run(reporter)

    def _run(self, reporter: Reporter) -> list[Result]:
        self._adopt_earlier_folders()
        rows, seed = self._finished(), 0
        while names := [name for name in self.sweep.datasets if self._wants(name, seed, rows)]:
            self._sweep_of(names, (seed,)).run(reporter)
            rows, seed = self._finished(), seed + 1
        order = list(self.sweep.datasets)
        rows = [row for row in rows if row.dataset in order]
        for name in order:
            self._draw(name, [row for row in rows if row.dataset == name])
        return sorted(
            rows,
            key=lambda row: (order.index(row.dataset), rank(known_methods(), row.method), row.seed),
        )

    def _adopt_earlier_folders(self) -> None:
        """Move runs of earlier revisions, from ``DATASET/METHOD/seed-N`` to where cells lie."""
        for dataset in self.sweep.datasets:
            for method in self.sweep.methods:
                earlier = self.out / dataset / method
                if earlier.is_dir():
                    (self.out / dataset / DEFAULT).mkdir(exist_ok=True)
                    earlier.rename(self.out / dataset / DEFAULT / method)

    def _finished(self) -> list[Result]:
        return read_results(self.out / RESULTS)

    def _sweep_of(self, names: Sequence[str], seeds: tuple[int, ...]) -> SweepRun:
        datasets = {name: self.sweep.datasets[name] for name in names}
        return SweepRun(
            sweep=replace(self.sweep, datasets=datasets, seeds=seeds),
            out=self.out,
            device=self.device,
            data_dir=self.data_dir,
            workers=self.workers,
            fail_fast=True,
        )

    def _wants(self, name: str, seed: int, rows: Sequence[Result]) -> bool:
        """Whether to run one more seed; judged by recorded times, so resuming changes nothing."""
        if self.seeds is not None or seed == 0:
            return seed < (self.seeds or 1)
        done = [row for row in rows if row.dataset == name and row.seed < seed]
        spent = sum(row.pretrain_seconds + row.probe_seconds for row in done)
        expected = spent * (seed + 1) / seed
        return seed < self.max_seeds and expected <= self.budget / len(self.sweep.datasets)

    def picture(self, dataset: str, name: str) -> Path:
        """Path of a picture: in the output folder, or in the data set's when there are several."""
        several = len(self.sweep.datasets) > 1
        return (self.out / dataset if several else self.out) / f"{name}.png"

    def _draw(self, name: str, rows: Sequence[Result]) -> None:
        """Curves of all trained methods; reconstructions of MetaMAE, or else of MAE."""
        trained = {(row.method, row.seed) for row in rows if row.steps > 0}
        seeds = tuple(sorted({seed for _, seed in trained}))
        cells: dict[str, list[Cell]] = {}
        for cell in self._sweep_of([name], seeds).sweep.cells() if seeds else []:
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
        shown = next((method for method in ("metamae", "mae") if method in cells), None)
        if shown is not None:
            cell = cells[shown][0]
            dataset = load_dataset(name, data_dir=self.data_dir, token_size=cell.config.token_size)
            method = load_method(self.out / cell.name / CHECKPOINT, dataset.inputs)
            assert isinstance(method, MAE)
            picture = self.picture(name, "reconstructions")
            draw_reconstructions(method, dataset.need("test"), picture)
