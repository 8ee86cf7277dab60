"""An experiment: pretrain and probe every (data set, seed, method), resumable, with pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metamae.config import COMPARED, METHODS, Config
from metamae.data.dataset import Dataset
from metamae.errors import CheckpointError, ConfigError
from metamae.features import extract_features
from metamae.figures import draw_curves, draw_reconstructions
from metamae.objective import MAE
from metamae.probe import ProbeResult, fit_probe
from metamae.progress import Reporter
from metamae.provenance import device_name, revision
from metamae.report import Row, read_rows, write_rows
from metamae.setting_curves import draw_settings
from metamae.training import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    Pretrained,
    load_method,
    pretrain,
    read_history,
)

RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings of an experiment.

    Attributes:
        config: Data set name to its resolved configuration; method and seed are filled in.
        load: Loads a data set by its configuration.
        methods: Methods to compare, a subset of :data:`metamae.config.METHODS`.
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

    def run(self, reporter: Reporter) -> list[Row]:
        """Run what is missing; rows and pictures are written as soon as they are there."""
        rows = {row.key: row for row in read_rows(self.out / RESULTS)} if self.resume else {}
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
                    rows[row.key] = row
                    write_rows(self.out / RESULTS, list(rows.values()))
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

    def _wanted(self, seed: int, rows: Sequence[Row]) -> bool:
        """Whether to run one more seed; judged by recorded times, so resuming changes nothing."""
        if self.seeds is not None or seed == 0:
            return seed < (self.seeds or 1)
        spent = sum(row.pretrain_seconds + row.probe_seconds for row in rows if row.seed < seed)
        expected = spent * (seed + 1) / seed
        return seed < self.max_seeds and expected <= self.budget / len(self.config)

    def _run_one(self, config: Config, dataset: Dataset, reporter: Reporter) -> Row:
        done = pretrain(
            config,
            dataset,
            self.run_dir(config),
            device=self.device,
            resume=self.resume,
            reporter=reporter,
        )
        start = time.perf_counter()
        result = self._probe(config, dataset, done, reporter)
        return self._row(config, done, result, time.perf_counter() - start)

    def _probe(
        self, config: Config, dataset: Dataset, done: Pretrained, reporter: Reporter
    ) -> ProbeResult:
        train, test = dataset.need("train"), dataset.need("test")
        assert train.labels is not None
        assert test.labels is not None
        return fit_probe(
            extract_features(done.method, train, device=self.device),
            train.labels,
            extract_features(done.method, test, device=self.device),
            test.labels,
            dataset.need_task(),
            config.probe,
            seed=config.seed,
            reporter=reporter,
            title=f"{dataset.name} {config.method} #{config.seed}: probe",
        )

    def _row(
        self, config: Config, done: Pretrained, result: ProbeResult, probe_seconds: float
    ) -> Row:
        probe = config.probe
        protocol = (
            f"linear, Adam {probe.learning_rate:g}, L2 {probe.weight_decay:g}, "
            f"{probe.epochs} epochs, last"
            + (", standardised features" if probe.standardise else "")
        )
        return Row(
            dataset=config.dataset,
            method=config.method,
            seed=config.seed,
            metric=result.metric,
            value=result.value,
            best=result.best,
            train_value=result.train_value,
            protocol=protocol,
            steps=done.steps,
            pretrain_seconds=round(done.seconds, 3),
            probe_seconds=round(probe_seconds, 3),
            batch_size=config.training.batch_size,
            device=self.device.type,
            hardware=device_name(self.device),
            torch=str(torch.__version__),
            revision=revision(),
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
