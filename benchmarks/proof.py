"""The proof: does pretraining save labels, by how much, and which part of MetaMAE does the work?

Cells (data set, variant, seed) are fixed in this file, most telling first. A cell pretrains an
encoder and keeps one JSON file: an accuracy for every number of labels and every draw of them.
Finished cells, in the folder or among the committed rows, are not run again, and several processes
may share a folder.

    python benchmarks/proof.py fixed     # one setting, the preset auto, for all data and methods
    python benchmarks/proof.py parts     # what is taken away from MetaMAE, or changed
    python benchmarks/proof.py tune      # equal trials for every method, judged on validation cuts
    python benchmarks/proof.py tuned     # the best trial of every method, on test rows, once
    python benchmarks/proof.py auto      # rate and ratio of signals and images, on validation cuts
    python benchmarks/proof.py collect   # rows into benchmarks/results/proof.json

``benchmarks/proof_page.py`` makes page and figure from the rows. What was expected before anything
ran stands in ``PREDICTIONS``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamae import load_dataset
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import LockedError
from metamae.evaluation.candidates import CANDIDATES, plain_features
from metamae.evaluation.drawing import ALL, Drawing, Stage
from metamae.evaluation.feature_cache import POOLINGS, run_features
from metamae.evaluation.label_curve import FrozenCurve, ScratchCurve, measure
from metamae.files import read_json, write_json
from metamae.locks import locked
from metamae.training.auto import auto_config
from metamae.training.pretraining import pretrain
from metamae.training.provenance import device_name, revision

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "proof"
RESULTS = ROOT / "benchmarks" / "results" / "proof.json"

SETS = ("tabular", "digits", "sensors", "multispectral_spatial")
"""Sets with room between raw inputs and what supervised learning reaches."""
HELD_BACK = ("diamonds", "jobs", "pens", "voices")
"""Sets on which nothing was ever chosen."""
STEPS, TUNE_STEPS = 1500, 600
TUNE_SEED, SEEDS, DRAWS = 100, 5, 20
FEW = 5
"""Labels a class by which settings are chosen."""
STAGES = ("fixed", "tune", "tuned", "auto")
"""Of rows; ``parts`` are more of ``fixed``."""
CHOICE = (FEW, ALL)
"""Numbers of labels by which what becomes of the tokens is chosen, on validation cuts."""

PREDICTIONS = (
    "With 5 labels a class, mean over sets, MetaMAE is above MAE by 1 to 3 points and above the "
    "untrained encoder by more.",
    "Raw inputs with logistic regression stay ahead of MAE on digits and tabular with 5 labels.",
    "U-MAE closes half of MetaMAE's lead over MAE.",
    "The contrast does more than the inner step; exact and first order differ by less than half a "
    "point.",
    "The paper's step size of 0.5 behaves as no step at all on standardised inputs.",
    "MAE's best rate is below 1e-3 on tables, and its mask ratio matters less than its rate.",
    "One setting for all data is within a point of tuned ones, mean over sets.",
)
"""Written before the first cell ran."""

BASELINES = ("raw_logistic", "raw_neighbours", "components", "field")
"""What takes no pretraining."""
DEAR = ("raw_boosting", "scratch")
"""The same, minutes each: last."""
HAND_MADE = ("sensors",)
"""Signals, which have features by hand."""

METHODS = ("mae", "umae", "metamae")
"""What is tuned, by as many trials each."""

_WEIGHT = "contrast.weight=0.5"
_PUBLISHED = "encoder.content_scale=published"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "random": ("random", ()),
    "mae": ("mae", ()),
    "metamae": ("metamae", ()),
    "umae": ("umae", ()),
}
"""Method and overrides of the preset ``auto``, on every set."""
EARLIER: dict[str, tuple[str, tuple[str, ...]]] = {
    f"{name}, published contents": (method, (_PUBLISHED,)) for name, (method, _) in VARIANTS.items()
}
"""The same with contents as they are published, which the preset had before."""
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "with the contrast": ("metamae", (_WEIGHT,)),
    "contrast of weight 0.1": ("metamae", ("contrast.weight=0.1",)),
    "contrast of equal views": ("metamae", ("adaptation.step_size=0", _WEIGHT)),
    "contrast of two masks": ("mae_contrast", (_WEIGHT,)),
    "first order": ("metamae", ("adaptation.differentiation=first_order",)),
    "held at 20 %": ("metamae", ("adaptation.reduction=0.2",)),
    "the paper's step size": ("metamae", ("adaptation.step_size=0.5",)),
    "held at 50 %": ("metamae", ("adaptation.reduction=0.5",)),
    "held at 5 %": ("metamae", ("adaptation.reduction=0.05",)),
    "drawn ratio": ("metamae", ("masking.ratio_range=[0.3,0.8]",)),
    "MAE, drawn ratio": ("mae", ("masking.ratio_range=[0.3,0.8]",)),
}
PARTS: dict[str, tuple[str, tuple[str, ...]]] = EARLIER | {
    name: (method, (*overrides, _PUBLISHED)) for name, (method, overrides) in _PARTS.items()
}
"""What is taken away or changed, on :data:`PART_SETS`, with contents as they are published; MAE
and MetaMAE with such contents stand beside it."""
PART_SETS = SETS

RATES = (5e-4, 1e-3, 2.5e-4, 1e-3, 5e-4)
RATIOS: tuple[float | None, ...] = (None, 0.5, 0.75, 0.3, 0.6)
"""None: what is common, half of a table and three quarters of anything else."""
OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "mae": ((),) * 5,
    "umae": tuple((f"baseline.uniformity={w}",) for w in (0.01, 0.01, 0.1, 0.1, 1.0)),
    "metamae": tuple(
        (f"adaptation.step_size={s}", f"contrast.weight={w}")
        for s, w in ((20, 0.5), (20, 0.1), (100, 0.5), (5, 0.5), (100, 0.1))
    ),
}
"""Five trials a method: rate, mask ratio, and its own settings."""

AUTO = {
    "1e-3, half": ("training.learning_rate=1e-3", "masking.mask_ratio=0.5", _PUBLISHED),
    "5e-4, three quarters": ("training.learning_rate=5e-4", "masking.mask_ratio=0.75", _PUBLISHED),
}
"""Learning rate and mask ratio, of now and of before, with contents as they are published."""


@dataclass(frozen=True)
class Job:
    """One cell.

    Attributes:
        stage: Of this program.
        dataset: Name.
        variant: Its name among those of the stage.
        seed: Seed of weights, order and masks.
        config: What is pretrained; ``None`` for what takes no encoder.
        judged: On validation cuts or on test rows.
        numbers: Numbers of labels; all that the set allows when empty.
    """

    stage: str
    dataset: str
    variant: str
    seed: int
    config: Config | None
    judged: Stage = "test"
    numbers: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells its row from others."""
        return (self.stage, self.dataset, self.variant, self.seed)

    @property
    def name(self) -> str:
        """Its place below the folder."""
        safe = "".join(c if c.isalnum() else "-" for c in self.variant)
        return f"{self.stage}/{self.dataset}/{safe}/seed-{self.seed}"

    def is_whole(self, row: dict[str, Any]) -> bool:
        """Whether a row is of the preset of now: those of before know no components of tokens."""
        return self.config is None or "tokens" in row

    def run(self, out: Path) -> dict[str, Any]:
        """Pretrain and judge."""
        dataset, folder = load_dataset(self.dataset), out / self.name
        drawing = drawing_of(dataset)
        start, seconds = time.perf_counter(), 0.0
        if self.config is not None:
            seconds = pretrain(self.config, dataset, folder, resume=True).cpu_seconds
        curves = dict(self._curves(dataset, drawing, folder))
        numbers = self.numbers or drawing.numbers
        values = {p: _values(c, dataset, self.judged, numbers) for p, c in curves.items()}
        cuts = values
        if self.judged == "test":
            cuts = {p: _values(c, dataset, "validation", CHOICE) for p, c in curves.items()}
        return {
            "stage": self.stage,
            "dataset": self.dataset,
            "variant": self.variant,
            "seed": self.seed,
            "judged": self.judged,
            "values": values["mean"],
            **{p: found for p, found in values.items() if p != "mean"},
            "validation": cuts,
            "method": "" if self.config is None else self.config.method,
            "steps": 0 if self.config is None else self.config.training.steps,
            "pretrain_cpu_seconds": round(seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            "data": fingerprint(dataset),
            "hardware": device_name(torch.device("cpu")),
            "revision": revision(),
            "torch": str(torch.__version__),
        }

    def _curves(
        self, dataset: Dataset, drawing: Drawing, folder: Path
    ) -> Iterator[tuple[str, FrozenCurve | ScratchCurve]]:
        """By what becomes of an encoder's tokens; of the rest there is one."""
        if self.config is None:
            yield "mean", self._plain(dataset, drawing)
            return
        for pooling in POOLINGS:
            features = run_features(folder, dataset, pooling=pooling)
            scaled = pooling != "mean"
            yield pooling, FrozenCurve(CANDIDATES["mae"], features, drawing, scaled=scaled)

    def _plain(self, dataset: Dataset, drawing: Drawing) -> FrozenCurve | ScratchCurve:
        candidate = CANDIDATES[self.variant]
        if candidate.representation == "network":
            return ScratchCurve(auto_config(dataset, method="mae", steps=1), dataset, drawing)
        return FrozenCurve(candidate, plain_features(candidate.representation, dataset), drawing)


def _values(
    curve: FrozenCurve | ScratchCurve, dataset: Dataset, stage: Stage, numbers: Iterable[int]
) -> dict[str, list[float]]:
    return {
        "all" if n == ALL else str(n): [round(v, 5) for v in found]
        for n, found in measure(curve, dataset, stage, numbers)
    }


def drawing_of(dataset: Dataset) -> Drawing:
    """The draws of labels: the same for every cell of a data set."""
    train = dataset.need("train")
    return Drawing(dataset.need_task(), np.asarray(train.labels), train.groups, draws=DRAWS)


def configure(
    dataset: str, method: str, seed: int, steps: int, overrides: Iterable[str] = ()
) -> Config:
    """The preset ``auto`` with overrides."""
    steps = 0 if method == "random" else steps
    return auto_config(
        load_dataset(dataset), method=method, seed=seed, steps=steps, overrides=overrides
    )


def fixed_jobs(sets: Iterable[str], seeds: Iterable[int]) -> Iterator[Job]:
    """Baselines without a seed first, but for the dear ones; then, seed by seed, every set."""
    sets = list(sets)
    yield from _plain_jobs(sets, BASELINES)
    for seed in seeds:
        for dataset in sets:
            for name, (method, overrides) in VARIANTS.items():
                config = configure(dataset, method, seed, STEPS, overrides)
                yield Job("fixed", dataset, name, seed, config)
    yield from _plain_jobs(sets, DEAR)


def _plain_jobs(sets: list[str], names: Iterable[str]) -> Iterator[Job]:
    for dataset in sets:
        for name in names:
            if name != "field" or dataset in HAND_MADE:
                yield Job("fixed", dataset, name, 0, None)


def part_jobs(sets: Iterable[str], seeds: Iterable[int]) -> Iterator[Job]:
    """What is taken away or changed, seed by seed."""
    for seed in seeds:
        for name, (method, overrides) in PARTS.items():
            for dataset in sets:
                if dataset in PART_SETS:
                    config = configure(dataset, method, seed, STEPS, overrides)
                    yield Job("fixed", dataset, name, seed, config, numbers=(FEW, ALL))


def trial(dataset: str, method: str, number: int) -> tuple[str, ...]:
    """Overrides of a trial; contents are as published, as they were in the first ones."""
    ratio = RATIOS[number] or (0.5 if dataset == "tabular" else 0.75)
    settings = (f"training.learning_rate={RATES[number]}", f"masking.mask_ratio={ratio}")
    return (*settings, *OWN[method][number], _PUBLISHED)


def tune_jobs(
    sets: Iterable[str], trials: Iterable[int], methods: Iterable[str] = METHODS
) -> Iterator[Job]:
    """Trials of every method, on validation cuts; all of them before one is chosen."""
    methods = tuple(methods)
    for number in trials:
        for dataset in sets:
            for method in methods:
                config = configure(
                    dataset, method, TUNE_SEED, TUNE_STEPS, trial(dataset, method, number)
                )
                variant = f"{method} {number}"
                yield Job("tune", dataset, variant, TUNE_SEED, config, "validation", (FEW,))


def auto_jobs(sets: Iterable[str]) -> Iterator[Job]:
    """The preset's rate and ratio of signals and images: those of before, and those of now."""
    for dataset in sets:
        yield Job("auto", dataset, "raw_logistic", 0, None, "validation", CHOICE)
        for method in METHODS:
            for name, overrides in AUTO.items():
                config = configure(dataset, method, TUNE_SEED, STEPS, overrides)
                variant = f"{method}, {name}"
                yield Job("auto", dataset, variant, TUNE_SEED, config, "validation", CHOICE)


def best_trial(rows: dict[Any, dict[str, Any]], dataset: str, method: str) -> int | None:
    """The trial with the best mean accuracy on validation cuts, once all are finished."""
    means = []
    for number in range(len(RATES)):
        row = rows.get(("tune", dataset, f"{method} {number}", TUNE_SEED))
        if row is None:
            return None
        kinds = [row[kind] for kind in ("values", "tokens") if kind in row]
        means.append(max(float(np.mean(kind[str(FEW)])) for kind in kinds))
    return int(np.argmax(means))


def tuned_jobs(
    sets: Iterable[str], seeds: Iterable[int], rows: dict[Any, dict[str, Any]]
) -> Iterator[Job]:
    """Every method by its best trial, on test rows."""
    for seed in seeds:
        for dataset in sets:
            for method in METHODS:
                best = best_trial(rows, dataset, method)
                if best is not None:
                    config = configure(dataset, method, seed, STEPS, trial(dataset, method, best))
                    yield Job("tuned", dataset, method, seed, config)


def read_rows(out: Path) -> dict[Any, dict[str, Any]]:
    """Finished cells by their keys: the committed ones, and those of the folder."""
    found = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    for stage in STAGES:
        found += [read_json(path) for path in sorted((out / stage).glob("*/*/seed-*.json"))]
    return {(r["stage"], r["dataset"], r["variant"], r["seed"]): r for r in found}


def run_all(jobs: Iterable[Job], out: Path) -> None:
    """Run what is missing; a cell that another process is at is left to it."""
    done = read_rows(out)
    for job in jobs:
        earlier = done.get(job.key)
        if earlier and job.is_whole(earlier):
            continue
        try:
            with locked(out / "locks" / job.name):
                path = out / f"{job.name}.json"
                if path.exists() and job.is_whole(read_json(path)):
                    continue
                row = job.run(out)
                if earlier and not row["pretrain_cpu_seconds"]:  # its run was there
                    row["pretrain_cpu_seconds"] = earlier["pretrain_cpu_seconds"]
                write_json(path, row)
        except LockedError:
            continue
        few = 100 * np.mean(row["values"].get(str(FEW), [np.nan]))
        print(f"{job.name}: few-{FEW} {few:.1f} ({row['seconds']:.0f} s)", flush=True)


def collect(out: Path) -> None:
    """Write all finished rows in one file, but for encoders' of an earlier preset."""
    rows = [
        (key, row)
        for key, row in sorted(read_rows(out).items())
        if not (row["stage"] == "fixed" and row["method"]) or "tokens" in row
    ]
    write_json(RESULTS, {"predictions": PREDICTIONS, "rows": [row for _, row in rows]})
    print(f"{len(rows)} rows in {RESULTS}")


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("parts", *STAGES, "collect"))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--trials", type=int, nargs="+", default=list(range(len(RATES))))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    match options.stage:
        case "fixed":
            run_all(fixed_jobs(options.sets, options.seeds), options.out)
        case "parts":
            run_all(part_jobs(options.sets, options.seeds), options.out)
        case "tune":
            run_all(tune_jobs(options.sets, options.trials, options.methods), options.out)
        case "tuned":
            rows = read_rows(options.out)
            run_all(tuned_jobs(options.sets, options.seeds, rows), options.out)
        case "auto":
            run_all(auto_jobs(options.sets), options.out)
        case "collect":
            collect(options.out)


if __name__ == "__main__":
    main()
