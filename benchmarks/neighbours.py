"""Do choices from the field help MAE and MetaMAE, one at a time, and at what cost?

What the choices are stands in ``docs/choices.md``.

A cell (data set, variant, seed) pretrains with one choice switched on and keeps one JSON file, as
the cells of ``benchmarks/proof.py`` do: accuracies on test rows with 5 labels a class and with all,
for every draw of labels, and seconds. The setting is the preset ``auto``, but with contents as they
are published, as it was when the first cells ran. Gradients joined to the features are read from
the runs without any choice. Finished cells are not run again, and several processes may share a
folder.

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

import numpy as np
import torch
from proof import FEW, SETS, TUNE_STEPS, Job, configure, run_all
from proof_page import table
from proof_values import difference, read_values

from metamae.data.dataset import Dataset
from metamae.evaluation.candidates import CANDIDATES
from metamae.evaluation.drawing import ALL, Drawing
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.label_curve import FrozenCurve, ScratchCurve
from metamae.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "neighbours"
RESULTS = ROOT / "benchmarks" / "results" / "neighbours.json"
STAGE, SEEDS, STEPS = "neighbours", 3, TUNE_STEPS

_WEIGHT = "contrast.weight=0.5"
_CROSS = "decoder.attention=cross"
_PUBLISHED = "encoder.content_scale=published"


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
    "adaptive": "masking.rule=adaptive",
    "drawn ratio": "masking.ratio_range=[0.3,0.8]",
    "teacher": "target.kind=teacher",
}
VARIANTS: dict[str, Variant] = {
    "mae": Variant("mae"),
    "metamae": Variant("metamae"),
    **{
        f"{method}, {name}": Variant(method, (choice,), method)
        for name, choice in _CHOICES.items()
        for method in ("mae", "metamae")
    },
    "mae, teacher, four masks": Variant(
        "mae", ("target.kind=teacher", "target.masks=4"), "mae, teacher"
    ),
    "umae": Variant("umae", (), "mae"),
    "two masks": Variant("mae_contrast", (_WEIGHT,), "mae"),
    "two masks, quantization": Variant(
        "mae_contrast", (_WEIGHT, "contrast.view=quantization"), "two masks"
    ),
    "two masks, vicreg": Variant(
        "mae_contrast", ("contrast.term=vicreg", "contrast.weight=0.02"), "two masks"
    ),
    "two masks, isotropy": Variant(
        "mae_contrast", (_WEIGHT, "contrast.term=isotropy"), "two masks"
    ),
    "metamae, contrast": Variant("metamae", (_WEIGHT,), "metamae"),
    "metamae, quantization": Variant(
        "metamae", (_WEIGHT, "contrast.view=quantization"), "metamae, contrast"
    ),
    "mae, cross": Variant("mae", (_CROSS,), "mae"),
    "mae, cross, mixed blocks": Variant("mae", (_CROSS, "decoder.mix_blocks=true"), "mae, cross"),
    "lfr": Variant("lfr", (), "mae"),
    "gon": Variant("gon", (), "metamae"),
}
"""By name, beside what they change."""

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
                overrides = (*made.overrides, _PUBLISHED)
                config = configure(dataset, made.method, seed, STEPS, overrides)
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


def times(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Processor time of pretraining over that of what a variant is compared with, by its name.

    The geometric mean over sets and seeds that both have.
    """
    taken = {(r["dataset"], r["seed"], r["variant"]): r["pretrain_cpu_seconds"] for r in rows}
    ratios: dict[str, list[float]] = {}
    for (dataset, seed, name), seconds in taken.items():
        beside = taken.get((dataset, seed, VARIANTS[name].beside))
        if beside:
            ratios.setdefault(name, []).append(seconds / beside)
    return {name: float(np.exp(np.mean(np.log(found)))) for name, found in ratios.items()}


def make_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every choice in a line: points on every set with few labels and with all, and time."""
    found = {(d["variant"], d["dataset"], d["labels"]): d for d in differences(rows)}
    beside = {name: d["beside"] for (name, _, _), d in found.items()}
    sets = [s for s in SETS if any(key[1] == s for key in found)]
    columns = [(s, labels) for labels in (str(FEW), "all") for s in sets]
    ratios = times(rows)
    lines = []
    for name, plain in beside.items():
        cells = [found.get((name, *column)) for column in columns]
        shown = ["-" if one is None else points(one) for one in cells]
        ratio = f"{ratios[name]:.2f}" if name in ratios else "-"
        lines.append([name, plain, *shown, ratio])
    heads = [f"{s}, {'all' if n == 'all' else f'{n} a class'}" for s, n in columns]
    return table(("choice", "minus", *heads, "x time"), lines)


def points(one: Mapping[str, Any]) -> str:
    """A difference as it stands in a table."""
    half = "" if one["half"] is None else f" ± {one['half']:.1f}"
    return f"{one['mean']:+.1f}{half}"


def make_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    seeds = {s: len({r["seed"] for r in rows if r["dataset"] == s}) for s in SETS}
    told = ", ".join(f"{name} {count}" for name, count in seeds.items() if count)
    machines = "; ".join(sorted({f"{r['hardware']}, torch {r['torch']}" for r in rows}))
    revisions = ", ".join(sorted({r["revision"] for r in rows}))
    return f"""# Choices from the field, one at a time

Points of test accuracy that a choice adds to what stands under "minus": the preset `auto`, {STEPS}
steps, logistic regression on frozen features, 20 draws of labels; ± is a 95 % interval over seeds,
and there is none from one seed. "x time" is processor time of pretraining over that of "minus".
Seeds: {told}. Nothing of a choice was tuned. What each is: [choices](../../docs/choices.md).

{make_table(rows)}

`benchmarks/neighbours.py run` measures what is missing; [rows](neighbours.json). {len(rows)} cells,
a thread each, side by side with other work, on {machines}. Revisions: {revisions}.
"""


def collect(out: Path) -> None:
    """Write all finished rows, what they come to, and the page."""
    rows = [row for _, row in sorted(read_rows(out).items())]
    write_json(RESULTS, {"rows": rows, "differences": differences(rows)})
    write_text(RESULTS.with_suffix(".md"), make_page(rows))
    print(make_table(rows))
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
