"""The proof: does pretraining save labels on data kept for it, and which part of it does the work?

Four stages, each a list of cells (data set, variant, seed) that is fixed in this file. A cell
pretrains an encoder and keeps one JSON file with an accuracy for every number of labels and every
draw of them; a cell that is finished is not run again, and several processes may share a folder.

    python benchmarks/proof.py tune      # equal trials for every method, judged on validation cuts
    python benchmarks/proof.py main      # the best trial of every method, on test rows, once
    python benchmarks/proof.py parts     # which part of MetaMAE does the work
    python benchmarks/proof.py auto      # one setting for all data, beside the tuned ones
    python benchmarks/proof.py collect   # benchmarks/results/proof.json, proof.md and the figure

What was expected before it ran stands in ``PREDICTIONS``.
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
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.label_curve import FrozenCurve, ScratchCurve, measure
from metamae.files import read_json, write_json
from metamae.locks import locked
from metamae.training.auto import auto_config
from metamae.training.pretraining import pretrain
from metamae.training.provenance import device_name, revision

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "proof"

SETS = ("sensors", "digits", "tabular", "multispectral_spatial")
"""Sets with room between raw inputs and what supervised learning reaches."""
METHODS = ("mae", "umae", "metamae")
"""What is tuned, by as many trials each."""
BASELINES = ("raw_logistic", "raw_boosting", "raw_neighbours", "components", "field", "scratch")
"""What takes no pretraining; a set without features by hand leaves that one out."""
TUNE_STEPS, MAIN_STEPS, PART_STEPS = 600, 2000, 1000
TUNE_SEED, SEEDS, DRAWS = 100, 5, 20
FEW = 5
"""Labels a class by which settings are chosen."""

PREDICTIONS = """\
Written before the first cell of the stage ran.
tune: MAE's best rate is below 1e-3 on tables; the mask ratio matters less than the rate.
main: with 5 labels a class, mean over sets, MetaMAE is above MAE by 1 to 3 points and above the
untrained encoder by more; raw inputs with logistic regression stay ahead of MAE on digits and
tabular; U-MAE closes half of MetaMAE's lead. With all labels MetaMAE leads MAE by about a point.
parts: the contrast does more than the inner step; exact and first order differ by less than half
a point; the paper's step size of 0.5 behaves as no step at all on standardised inputs.
auto: within one point of tuned, mean over sets.
"""

RATES = (5e-4, 1e-3, 2.5e-4, 1e-3, 5e-4)
RATIOS: tuple[float | None, ...] = (None, 0.5, 0.75, 0.3, 0.6)  # None: as the preset auto
OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "mae": ((),) * 5,
    "umae": tuple((f"baseline.uniformity={w}",) for w in (0.01, 0.01, 0.1, 0.1, 1.0)),
    "metamae": tuple(
        (f"adaptation.step_size={s}", f"contrast.weight={w}")
        for s, w in ((20, 0.5), (20, 0.1), (100, 0.5), (5, 0.5), (100, 0.1))
    ),
}
"""Five trials a method: rate, mask ratio, and its own settings."""

PART_SETS = ("tabular", "digits", "sensors")
FULL = ("adaptation.step_size=20", "contrast.weight=0.5")
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MAE": ("mae", ()),
    "uniformity (U-MAE)": ("umae", ()),
    "contrast of equal views": ("metamae", ("adaptation.step_size=0", "contrast.weight=0.5")),
    "contrast of two masks": ("mae_contrast", ("contrast.weight=0.5",)),
    "inner step, first order": (
        "metamae",
        (FULL[0], "contrast.weight=0", "adaptation.differentiation=first_order"),
    ),
    "inner step, exact": ("metamae", (FULL[0], "contrast.weight=0")),
    "full, first order": ("metamae", (*FULL, "adaptation.differentiation=first_order")),
    "full, exact": ("metamae", FULL),
    "full, the paper's step size": ("metamae", ("adaptation.step_size=0.5", FULL[1])),
}
"""Method and overrides of the preset ``auto`` by the part that they leave."""


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
    judged: Stage
    numbers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Its place below the folder."""
        safe = self.variant.replace(" ", "-").replace(",", "").replace("'", "")
        return f"{self.stage}/{self.dataset}/{safe}/seed-{self.seed}"

    def run(self, out: Path) -> dict[str, Any]:
        """Pretrain and judge."""
        dataset, folder = load_dataset(self.dataset), out / self.name
        drawing = drawing_of(dataset)
        start = time.perf_counter()
        seconds = 0.0
        if self.config is None:
            curve = self._plain(dataset, drawing)
        else:
            seconds = pretrain(self.config, dataset, folder, resume=True).cpu_seconds
            features = run_features(folder, dataset)
            curve = FrozenCurve(CANDIDATES["mae"], features, drawing)
        numbers = self.numbers or drawing.numbers
        values = dict(measure(curve, dataset, self.judged, numbers))
        return {
            "stage": self.stage,
            "dataset": self.dataset,
            "variant": self.variant,
            "seed": self.seed,
            "judged": self.judged,
            "values": {"all" if n == ALL else str(n): v for n, v in values.items()},
            "config": None if self.config is None else self.config.to_dict(),
            "pretrain_cpu_seconds": round(seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            "data": fingerprint(dataset),
            "hardware": device_name(torch.device("cpu")),
            "revision": revision(),
            "torch": str(torch.__version__),
        }

    def _plain(self, dataset: Dataset, drawing: Drawing) -> FrozenCurve | ScratchCurve:
        candidate = CANDIDATES[self.variant]
        if candidate.representation == "network":
            return ScratchCurve(auto_config(dataset, method="mae", steps=1), dataset, drawing)
        return FrozenCurve(candidate, plain_features(candidate.representation, dataset), drawing)


def drawing_of(dataset: Dataset) -> Drawing:
    """The draws of labels: the same for every cell of a data set."""
    train = dataset.need("train")
    return Drawing(dataset.need_task(), np.asarray(train.labels), train.groups, draws=DRAWS)


def configure(
    dataset: str, method: str, seed: int, steps: int, overrides: Iterable[str] = ()
) -> Config:
    """The preset ``auto`` with overrides."""
    return auto_config(
        load_dataset(dataset), method=method, seed=seed, steps=steps, overrides=overrides
    )


def trial(method: str, number: int) -> tuple[str, ...]:
    """Overrides of a trial."""
    ratio = RATIOS[number]
    mask = () if ratio is None else (f"masking.mask_ratio={ratio}",)
    return (f"training.learning_rate={RATES[number]}", *mask, *OWN[method][number])


def tune_jobs(sets: Iterable[str], methods: Iterable[str]) -> Iterator[Job]:
    """Every trial of every method, on validation cuts."""
    for dataset in sets:
        for number in range(len(RATES)):
            for method in methods:
                config = configure(dataset, method, TUNE_SEED, TUNE_STEPS, trial(method, number))
                variant = f"{method} {number}"
                yield Job("tune", dataset, variant, TUNE_SEED, config, "validation", (FEW,))


def best_trial(out: Path, dataset: str, method: str) -> int:
    """The trial with the best mean accuracy on validation cuts."""
    means = []
    for number in range(len(RATES)):
        row = read_json(out / "tune" / dataset / f"{method}-{number}" / f"seed-{TUNE_SEED}.json")
        means.append(float(np.mean(row["values"][str(FEW)])))
    return int(np.argmax(means))


def main_jobs(
    sets: Iterable[str], methods: Iterable[str], out: Path, seeds: Iterable[int]
) -> Iterator[Job]:
    """Baselines, the untrained encoder, and every method by its best trial, on test rows."""
    chosen = {(s, m): trial(m, best_trial(out, s, m)) for s in sets for m in methods}
    for seed in seeds:
        for dataset in sets:
            for method in methods:
                config = configure(dataset, method, seed, MAIN_STEPS, chosen[dataset, method])
                yield Job("main", dataset, method, seed, config, "test")
            untrained = configure(dataset, "random", seed, 0)
            yield Job("main", dataset, "random", seed, untrained, "test")


def baseline_jobs(sets: Iterable[str]) -> Iterator[Job]:
    """What takes no pretraining."""
    for dataset in sets:
        for name in BASELINES:
            if name != "field" or dataset == "sensors":
                yield Job("main", dataset, name, 0, None, "test")


def part_jobs(sets: Iterable[str], seeds: Iterable[int]) -> Iterator[Job]:
    """The parts, all under the settings of ``auto``."""
    for seed in seeds:
        for dataset in sets:
            for name, (method, overrides) in PARTS.items():
                config = configure(dataset, method, seed, PART_STEPS, overrides)
                yield Job("parts", dataset, name, seed, config, "test", (FEW, ALL))


def auto_jobs(sets: Iterable[str], seeds: Iterable[int]) -> Iterator[Job]:
    """One setting for all."""
    for seed in seeds:
        for dataset in sets:
            config = configure(dataset, "metamae", seed, MAIN_STEPS)
            yield Job("auto", dataset, "metamae", seed, config, "test", (FEW, ALL))


def run_all(jobs: Iterable[Job], out: Path) -> None:
    """Run what is missing; a cell that another process is at is left to it."""
    for job in jobs:
        path = out / f"{job.name}.json"
        try:
            with locked(out / "locks" / job.name):
                if path.exists():
                    continue
                row = job.run(out)
                write_json(path, row)
        except LockedError:
            continue
        few = row["values"].get(str(FEW), [np.nan])
        print(
            f"{job.name}: few-{FEW} {100 * np.mean(few):.1f} ({row['seconds']:.0f} s)", flush=True
        )


def main() -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("tune", "main", "baselines", "parts", "auto", "collect"))
    parser.add_argument("--sets", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = options.sets or (PART_SETS if options.stage == "parts" else SETS)
    match options.stage:
        case "tune":
            run_all(tune_jobs(sets, options.methods), options.out)
        case "main":
            run_all(main_jobs(sets, options.methods, options.out, options.seeds), options.out)
        case "baselines":
            run_all(baseline_jobs(sets), options.out)
        case "parts":
            run_all(part_jobs(sets, options.seeds), options.out)
        case "auto":
            run_all(auto_jobs(sets, options.seeds), options.out)


if __name__ == "__main__":
    main()
