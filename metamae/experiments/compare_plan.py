"""What a comparison consists of: its settings, its pieces, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamae.config.reading import plain
from metamae.config.schema import Config
from metamae.data.dataset import Array, Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import ConfigError, DataError, reason_of, shown
from metamae.evaluation.candidates import CANDIDATES, Candidate, plain_features
from metamae.evaluation.drawing import Drawing, Stage
from metamae.evaluation.feature_cache import Pooling, run_features
from metamae.evaluation.label_curve import Curve, FrozenCurve, ScratchCurve, measure
from metamae.experiments.cell import is_finished
from metamae.files import read_json, write_json
from metamae.progress import Reporter
from metamae.training.pretraining import pretrain

PLAN = "plan.json"
FORMAT = 1

Load = Callable[[], Dataset]
"""Opens the data; it is sent to worker processes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a comparison; pieces of two comparisons with equal plans are the same.

    Attributes:
        data: Fingerprint of the data.
        candidates: What is compared.
        seeds: Seeds of pretraining.
        draws: Draws of labels.
        minutes: Budget of each pretraining run, 0 where steps are given.
        steps: Steps of each pretraining run, 0 where minutes are given.
        overrides: Overrides of the configuration.
        configs: Method to resolved configuration, of the first seed.
    """

    data: str
    candidates: tuple[str, ...]
    seeds: int
    draws: int
    minutes: float
    steps: int
    overrides: tuple[str, ...]
    configs: Mapping[str, Config]

    def settings(self) -> dict[str, Any]:
        """What was asked for: it has to be the same to go on."""
        names = ("data", "candidates", "seeds", "draws", "minutes", "steps", "overrides")
        values: dict[str, Any] = plain({name: getattr(self, name) for name in names})
        return values

    def write(self, path: Path) -> None:
        """Keep it."""
        configs = {method: config.to_dict() for method, config in self.configs.items()}
        write_json(path, {"format": FORMAT, "settings": self.settings(), "configs": configs})


def read_plan(path: Path, asked: dict[str, Any]) -> Plan | None:
    """The plan that a folder was begun with, so that its budget stays the steps it became.

    Args:
        path: The file.
        asked: :meth:`Plan.settings` that are asked for now.

    Returns:
        The plan, or ``None`` where there is none.

    Raises:
        ConfigError: the folder was begun with other settings or other data.
        DataError: a damaged file.
    """
    if not path.exists():
        return None
    try:
        kept = read_json(path)
        settings, format_ = dict(kept["settings"]), kept["format"]
        configs = {str(m): Config.from_dict(values) for m, values in kept["configs"].items()}
        if format_ != FORMAT or settings.keys() != asked.keys():
            raise ValueError(f"format {shown(format_)}")
        known: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
        }
        plan = Plan(configs=configs, **known)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise DataError(
            f"expected the plan of a comparison in {path}, got a damaged file "
            f"({reason_of(fault)}); delete its folder, or choose another --out"
        ) from fault
    changed = [
        f"{key}: {shown(settings[key])} -> {shown(asked[key])}"
        for key in asked
        if settings[key] != asked[key]
    ]
    if changed:
        raise ConfigError(
            f"expected the settings that {path.parent} was begun with, got changes in "
            f"{'; '.join(changed)}; use the same, or choose another --out"
        )
    return plan


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One candidate with one seed, in one stage: what a worker does at a time.

    Attributes:
        candidate: Name of the candidate.
        seed: Seed of pretraining; 0 where there is none.
        stage: Stage.
        config: Configuration of its encoder; of the network, for one trained from scratch.
        load: Opens the data.
        data: Their fingerprint.
        draws: Draws of labels.
        out: Folder of the comparison.
        device: Where to train.
        pooling: What becomes of the features of its encoder's tokens.
    """

    candidate: str
    seed: int
    stage: Stage
    config: Config
    load: Load
    data: str
    draws: int
    out: Path
    device: torch.device
    pooling: Pooling = "mean"

    @property
    def name(self) -> str:
        """What it is called in progress."""
        return f"{self.candidate} #{self.seed}"

    @property
    def path(self) -> Path:
        """File of its values."""
        kind = "" if self.pooling == "mean" else f"-{self.pooling}"
        return self.out / "pieces" / f"{self.candidate}-{self.seed}{kind}-{self.stage}.json"

    def run(self, reporter: Reporter) -> None:
        """Measure what is missing; every number of labels is on disk before the next begins."""
        dataset = _opened(self.load, self.data)
        drawing = drawing_of(dataset, self.draws)
        values = self.read()
        missing = [number for number in drawing.numbers if number not in values]
        if not missing:
            return
        curve = self._curve(dataset, drawing, reporter)
        with reporter.stage(
            f"{self.name}: {self.stage}", total=len(missing), unit="numbers"
        ) as bar:
            for number, found in measure(curve, dataset, self.stage, missing):
                values[number] = found
                write_json(self.path, {str(key): value for key, value in values.items()})
                bar.advance()

    def read(self) -> dict[int, list[float]]:
        """Values by number of labels, draw by draw: those that are finished.

        Raises:
            DataError: a damaged file.
        """
        if not self.path.exists():
            return {}
        try:
            kept = read_json(self.path)
            return {int(key): [float(value) for value in found] for key, found in kept.items()}
        except (ValueError, TypeError, AttributeError) as fault:
            raise DataError(
                f"expected values of a comparison in {self.path}, got a damaged file "
                f"({reason_of(fault)}); delete it to measure them again"
            ) from fault

    def _curve(self, dataset: Dataset, drawing: Drawing, reporter: Reporter) -> Curve:
        candidate = CANDIDATES[self.candidate]
        if candidate.representation == "network":
            return ScratchCurve(self.config, dataset, drawing)
        if candidate.representation != "encoder":
            features = plain_features(candidate.representation, dataset)
            return FrozenCurve(candidate, features, drawing)
        folder = run_folder(self.out, candidate, self.seed)
        if not is_finished(self.config, folder, self.data):
            pretrain(
                self.config, dataset, folder, device=self.device, resume=True, reporter=reporter
            )
        features = run_features(folder, dataset, device=self.device, pooling=self.pooling)
        return FrozenCurve(candidate, features, drawing, scaled=self.pooling != "mean")


def run_folder(out: Path, candidate: Candidate, seed: int) -> Path:
    """Folder of a pretraining run of a comparison: a run folder like any other."""
    return out / "runs" / candidate.method / f"seed-{seed}"


_kept: dict[str, Dataset] = {}


def _opened(load: Load, data: str) -> Dataset:
    """The data, opened once in a process.

    Raises:
        DataError: they changed since the comparison was begun.
    """
    if data not in _kept:
        dataset = load()
        if fingerprint(dataset) != data:
            raise DataError(
                f"expected the data of {dataset.name!r} as they were when the comparison began, "
                "got others; do not change them while it runs"
            )
        keep_open(dataset, data)
    return _kept[data]


def keep_open(dataset: Dataset, data: str) -> None:
    """Let the pieces of this process use a data set, of this fingerprint, that is open already."""
    _kept.clear()
    _kept[data] = dataset


def drawing_of(dataset: Dataset, draws: int) -> Drawing:
    """The draws of a comparison: the same for every candidate and every seed of pretraining."""
    train = dataset.need("train")
    assert train.labels is not None
    return Drawing(dataset.need_task(), np.asarray(train.labels), train.groups, draws=draws)


def average(pieces: Sequence[Piece]) -> dict[str, float]:
    """Mean over seeds, numbers of labels and draws, each weighing the same, by candidate."""
    found: dict[str, list[float]] = {}
    for piece in pieces:
        values = [float(np.mean(draws)) for draws in piece.read().values()]
        found.setdefault(piece.candidate, []).append(float(np.mean(values)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def gather(
    pieces: Sequence[Piece], numbers: Sequence[int]
) -> dict[tuple[Stage, str], dict[int, Array]]:
    """Values ``(seeds, draws)`` by stage and candidate, and by number of labels.

    Args:
        pieces: Of one pooling for each candidate.
        numbers: Numbers of labels.
    """
    gathered: dict[tuple[Stage, str], dict[int, Array]] = {}
    for stage, name in dict.fromkeys((piece.stage, piece.candidate) for piece in pieces):
        found = [p.read() for p in pieces if (p.stage, p.candidate) == (stage, name)]
        gathered[stage, name] = {
            number: np.array([values[number] for values in found]) for number in numbers
        }
    return gathered
