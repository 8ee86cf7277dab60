"""Do choices from the field help MAE and MetaMAE, one at a time, and at what cost?

What the choices are stands in ``docs/choices.md``.

A cell (data set, variant, seed) pretrains with one choice switched on, under the preset ``auto``,
and keeps one JSON file, as the cells of ``benchmarks/proof.py`` do: accuracies on test rows with 5
labels a class and with all, for every draw of labels, and seconds. Gradients joined to the features
are read from the runs without any choice. Finished cells are not run again, and several processes
may share a folder.

    python benchmarks/neighbours.py run       # what is missing, seed by seed
    python benchmarks/neighbours.py list      # the cells, and which are finished
    python benchmarks/neighbours.py collect   # into benchmarks/results/neighbours.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from proof import FEW, SETS, STEPS, Job, configure, run_all
from proof_values import difference, read_values

from metamae.data.dataset import Dataset
from metamae.evaluation.candidates import CANDIDATES
from metamae.evaluation.drawing import ALL, Drawing
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.label_curve import FrozenCurve, ScratchCurve
from metamae.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "neighbours"
RESULTS = ROOT / "benchmarks" / "results" / "neighbours.json"
STAGE, SEEDS = "neighbours", 3

_WEIGHT = "contrast.weight=0.5"


@dataclass(frozen=True)
class Variant:
    """A method with one choice switched on.

    Attributes:
        method: Its name.
        overrides: The choice, of the preset ``auto``.
        beside: Variant that it is compared with, the same without the choice; empty for that one.
    """

    method: str
    overrides: tuple[str, ...] = ()
    beside: str = ""


_CHOICES = {
    "attention": "masking.rule=attention",
    "hard": "masking.rule=hard",
    "teacher": "target.kind=teacher",
}
VARIANTS: dict[str, Variant] = {
    "mae": Variant("mae"),
    "metamae": Variant("metamae"),
    "two masks": Variant("mae_contrast", (_WEIGHT,)),
    **{
        f"{method}, {name}": Variant(method, (choice,), method)
        for name, choice in _CHOICES.items()
        for method in ("mae", "metamae")
    },
    "mae, quantization": Variant(
        "mae_contrast", (_WEIGHT, "contrast.view=quantization"), "two masks"
    ),
    "metamae, quantization": Variant("metamae", ("contrast.view=quantization",), "metamae"),
}
"""By name; a contrast of MAE is compared with that of two masks."""

GRADIENTS = ("mae", "metamae")
"""Variants whose features are joined with gradients too: their rows have ``gradients``."""


class NeighbourJob(Job):
    """A cell of this program."""

    def is_whole(self, row: dict[str, Any]) -> bool:
        """Whether a row has everything."""
        return super().is_whole(row) and (self.variant not in GRADIENTS or "gradients" in row)

    def _curves(
        self, dataset: Dataset, drawing: Drawing, folder: Path
    ) -> Iterator[tuple[str, FrozenCurve | ScratchCurve]]:
        """Mean and components of tokens; of some, gradients."""
        yield from super()._curves(dataset, drawing, folder)
        if self.variant in GRADIENTS:
            features = run_features(folder, dataset, pooling="gradients")
            yield "gradients", FrozenCurve(CANDIDATES["mae"], features, drawing)


def jobs(sets: Iterable[str], seeds: Iterable[int], variants: Iterable[str]) -> Iterator[Job]:
    """Seed by seed, every set; what others are compared with comes first."""
    sets, variants = list(sets), list(variants)
    for seed in seeds:
        for dataset in sets:
            for name in variants:
                made = VARIANTS[name]
                config = configure(dataset, made.method, seed, STEPS, made.overrides)
                yield NeighbourJob(STAGE, dataset, name, seed, config, numbers=(FEW, ALL))


def read_rows(out: Path) -> dict[Any, dict[str, Any]]:
    """Finished cells by their keys: the committed ones, and those of the folder."""
    found = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    found += [read_json(path) for path in sorted((out / STAGE).glob("*/*/seed-*.json"))]
    return {(r["stage"], r["dataset"], r["variant"], r["seed"]): r for r in found}


def missing(wanted: Iterable[Job], out: Path) -> Iterator[Job]:
    """Those that are not finished."""
    done = read_rows(out)
    for job in wanted:
        if job.key not in done or not job.is_whole(done[job.key]):
            yield job


def differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every choice on every set, paired by seed, in points.

    Encoders are compared with what becomes of their tokens chosen on validation cuts, as in the
    proof; gradients beside the mean of tokens with that mean alone.
    """
    halves = [
        {
            **{key: row[key] for key in ("stage", "dataset", "seed")},
            "variant": f"{row['variant']}, {name}",
            "values": row[kind],
        }
        for row in rows
        if "gradients" in row
        for kind, name in (("gradients", "gradients"), ("values", "mean"))
    ]
    values = read_values(rows, STAGE) | read_values(halves, STAGE)
    pairs = {name: made.beside for name, made in VARIANTS.items() if made.beside}
    pairs |= {f"{name}, gradients": f"{name}, mean" for name in GRADIENTS}
    found = []
    for name, beside in pairs.items():
        for dataset in dict.fromkeys(row["dataset"] for row in rows):
            for labels in (str(FEW), "all"):
                gain = difference(values, dataset, name, beside, labels)
                if gain is not None:
                    found.append(
                        {
                            "variant": name,
                            "beside": beside,
                            "dataset": dataset,
                            "labels": labels,
                            **gain._asdict(),
                        }
                    )
    return found


def collect(out: Path) -> None:
    """Write all finished rows, and what they come to, in one file."""
    rows = [row for _, row in sorted(read_rows(out).items())]
    found = differences(rows)
    write_json(RESULTS, {"rows": rows, "differences": found})
    for one in found:
        half = "" if one["half"] is None else f" ± {one['half']:.1f}"
        print(f"{one['variant']}, {one['dataset']}, {one['labels']}: {one['mean']:+.1f}{half}")
    print(f"{len(rows)} rows in {RESULTS}")


def main() -> None:
    """Run, list or collect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "list", "collect"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=tuple(VARIANTS))
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.action == "collect":
        collect(options.out)
        return
    wanted = list(jobs(options.sets, options.seeds, options.variants))
    left = list(missing(wanted, options.out))
    if options.action == "run":
        run_all(left, options.out)
        return
    for job in left:
        print(job.name)
    print(f"{len(wanted) - len(left)} of {len(wanted)} cells are finished")


if __name__ == "__main__":
    main()
