"""An experiment: pretrain and probe every (data set, seed, method), resumable, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metamae.config.schema import COMPARED, METHODS, Config
from metamae.data.dataset import Dataset
from metamae.errors import CheckpointError, ConfigError
from metamae.evaluation.feature_cache import run_features
from metamae.experiments.evaluate_run import probe_row
from metamae.methods.mae import MAE
from metamae.progress import Reporter
from metamae.report.curves import draw_curves, draw_settings
from metamae.report.reconstructions import draw_reconstructions
from metamae.report.rows import DEFAULT, Result, read_results, write_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import CHECKPOINT, CONFIG, HISTORY, load_method, read_history

RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings of an experiment.

    Attributes:
        config: Data set name to its resolved configuration; method and seed are filled in.
        load: Loads a data set by its configuration.
        methods: Methods to compare, a subset of :data:`metamae.config.schema.METHODS`.
        seeds: Number of seeds, or ``None`` for as many as fit ``budget`` (from 1 to ``max_seeds``).
        budget: Seconds for the whole experiment when ``seeds`` is ``None``.
        max_seeds: Most seeds when ``seeds`` is ``None``.
        device: Where to train.
        out: Output folder.
        resume: Keep finished rows and continue unfinished runs.
    """

    config: dict[str, Config]
    load: Callable[[Config], Dataset]
    methods: Sequence[str] = COMPARED
    seeds: int | None = None
    budget: float = 240.0
    max_seeds: int = 3
    device: torch.device
    out: Path
    resume: bool = False

    def __post_init__(self) -> None:
        """Check names and counts."""
        unknown = set(self.methods) - set(METHODS)
        if unknown or not self.methods:
            raise ConfigError(
                f"expected methods among {', '.join(METHODS)}, got {list(self.methods)}"
            )
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"expected at least 1 seed, got {self.seeds}")

    def run(self, reporter: Reporter) -> list[Result]:
        """Run what is missing; rows and pictures are written as soon as they are there."""
        found = read_results(self.out / RESULTS) if self.resume else []
        rows = {(row.dataset, row.method, row.seed): row for row in found}
        datasets = {name: self.load(config) for name, config in self.config.items()}
        for name, dataset in datasets.items():
            seed = 0
            while self._wanted(seed, [row for row in rows.values() if row.dataset == name]):
                for method in self.methods:
                    config = self.run_config(name, method, seed)
                    # A run whose folder was deleted, as errors advise, is run again.
                    if (name, method, seed) in rows and self.run_dir(config).is_dir():
                        self._check_unchanged(config)
                        continue
                    row = self._run_one(config, dataset, reporter)
                    rows[name, method, seed] = row
                    write_results(self.out / RESULTS, list(rows.values()))
                seed += 1
            self._draw(dataset, seed)
        order = list(self.config)
        asked = [row for row in rows.values() if row.dataset in order]
        return sorted(
            asked, key=lambda row: (order.index(row.dataset), METHODS.index(row.method), row.seed)
        )

    def run_config(self, dataset: str, method: str, seed: int) -> Config:
        """Resolved configuration of one run; random initialisation is not trained."""
        config = replace(self.config[dataset], method=method, seed=seed)
        if method == "random":
            config = replace(config, training=replace(config.training, steps=0))
        return config

    def run_dir(self, config: Config) -> Path:
        """Folder of one run."""
        return self.out / config.dataset / config.method / f"seed-{config.seed}"

    def picture(self, dataset: str, name: str) -> Path:
        """Path of a picture: in the output folder, or in the data set's when there are several."""
        return (self.out if len(self.config) == 1 else self.out / dataset) / f"{name}.png"

    def _wanted(self, seed: int, rows: Sequence[Result]) -> bool:
        """Whether to run one more seed; judged by recorded times, so resuming changes nothing."""
        if self.seeds is not None or seed == 0:
            return seed < (self.seeds or 1)
        spent = sum(row.pretrain_seconds + row.probe_seconds for row in rows if row.seed < seed)
        expected = spent * (seed + 1) / seed
        return seed < self.max_seeds and expected <= self.budget / len(self.config)

    def _run_one(self, config: Config, dataset: Dataset, reporter: Reporter) -> Result:
        pretrain(
            config,
            dataset,
            self.run_dir(config),
            device=self.device,
            resume=self.resume,
            reporter=reporter,
        )
        folder = self.run_dir(config)
        return probe_row(
            Checkpoint.load(folder / CHECKPOINT),
            run_features(folder, dataset, device=self.device),
            "published",
            transfer=dataset.name,
            variant=DEFAULT,
            device=self.device,
            probe=config.probe,
            reporter=reporter,
        )

    def _check_unchanged(self, config: Config) -> None:
        """A finished row is kept only if it was made with the settings asked for now."""
        path = self.run_dir(config) / CONFIG
        if path.is_file() and path.read_text() == config.to_yaml():
            return
        raise CheckpointError(
            f"expected {self.out} to hold a run with these settings, but its result for "
            f"{config.dataset}, {config.method}, seed {config.seed} was made with others; "
            "resume with the same flags, or choose another output folder"
        )

    def _draw(self, dataset: Dataset, seeds: int) -> None:
        """Curves of all trained methods; reconstructions of MetaMAE, or else of MAE."""
        trained = [method for method in METHODS if method in self.methods and method != "random"]
        if not trained or self.config[dataset.name].training.steps == 0:
            return
        runs = {
            method: [
                self.run_dir(self.run_config(dataset.name, method, seed)) for seed in range(seeds)
            ]
            for method in trained
        }
        histories = {
            method: [read_history(run / HISTORY) for run in folders]
            for method, folders in runs.items()
        }
        draw_curves(histories, self.picture(dataset.name, "curves"))
        if "metamae" in trained and self.config[dataset.name].learn.settings:
            picture = self.picture(dataset.name, "settings")
            draw_settings({"metamae": histories["metamae"]}, picture)
        shown = next((method for method in ("metamae", "mae") if method in trained), None)
        if shown is not None:
            method = load_method(runs[shown][0] / CHECKPOINT, dataset.inputs)
            assert isinstance(method, MAE)
            picture = self.picture(dataset.name, "reconstructions")
            draw_reconstructions(method, dataset.need("test"), picture)
