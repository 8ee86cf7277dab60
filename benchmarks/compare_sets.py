"""Compare on six data sets that nobody tuned on: what it recommends, and whether that was right.

The sets come with scikit-learn and statsmodels and are written as a user has them: five tables as
CSV (numbers, codes, one with a number to predict) and monthly series as ``.npz``. Settings are the
same for all, and fixed here before anything was run. Run it as

    python benchmarks/compare_sets.py [--only NAME ...] [--steps 1500]

Each set is a comparison in ``runs/compare-sets/NAME``, which resumes; rows and page are written
from those that are finished.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamae.cli.terminal import make_console
from metamae.data.dataset import Dataset
from metamae.data.own import open_data
from metamae.experiments.compare import Compare
from metamae.experiments.compare_record import PAGE, rows_of
from metamae.files import write_json, write_text
from metamae.progress import Reporter
from metamae.report.label_page import Comparison
from metamae.report.label_sentence import show_value

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "compare.json"
RUNS = ROOT / "runs" / "compare-sets"
STEPS, SEEDS, DRAWS = 1500, 2, 20


def _sklearn(name: str) -> tuple[Any, str]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    frame = bunch.frame.copy()
    if len(bunch.get("target_names", ())):
        frame["target"] = [str(bunch.target_names[code]) for code in frame["target"]]
    return frame, "target"


def _statsmodels(name: str, label: str) -> tuple[Any, str]:
    from importlib import import_module

    return import_module(f"statsmodels.datasets.{name}").load_pandas().data.copy(), label


def make_wine() -> tuple[Any, str]:
    """Chemical analyses of 178 wines of three cultivars."""
    return _sklearn("wine")


def make_breast_cancer() -> tuple[Any, str]:
    """Thirty measures of cell nuclei of 569 tumours, benign or malignant."""
    return _sklearn("breast_cancer")


def make_fair() -> tuple[Any, str]:
    """A survey of 6,366 married women: whether they had an affair."""
    frame, _ = _statsmodels("fair", "affairs")
    frame["affair"] = np.where(frame.pop("affairs") > 0, "yes", "no")
    return frame, "affair"


def make_anes96() -> tuple[Any, str]:
    """A survey of 944 voters: party identification, seven classes; the vote itself left out."""
    frame, label = _statsmodels("anes96", "PID")
    frame[label] = [f"party {int(code)}" for code in frame[label]]
    return frame.drop(columns=["vote"]), label


def make_diabetes() -> tuple[Any, str]:
    """Ten measures of 442 patients; a number to predict: progression after a year."""
    return _sklearn("diabetes")


def make_sunspots() -> tuple[Any, str]:
    """Sliding windows of 309 years of sunspots: whether the next year has more than the last."""
    from statsmodels.datasets import sunspots

    series = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(np.float32)
    width = 24
    windows = np.lib.stride_tricks.sliding_window_view(series, width + 1)
    rises = np.where(windows[:, -1] > windows[:, -2], "more", "less")
    # Windows overlap: blocks of 24 years stay together, with a gap of one window between them.
    block = np.arange(len(windows)) // (2 * width)
    inside = np.arange(len(windows)) % (2 * width) < width
    arrays = {"x": windows[inside, None, :width], "y": rises[inside], "block": block[inside]}
    return arrays, "y"


SETS: Mapping[str, Callable[[], tuple[Any, str]]] = {
    "wine": make_wine,
    "breast_cancer": make_breast_cancer,
    "fair": make_fair,
    "anes96": make_anes96,
    "diabetes": make_diabetes,
    "sunspots": make_sunspots,
}


def write_set(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write a set as a user has it; its file, and what is said of it."""
    data, label = SETS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(data, dict):
        path = folder / f"{name}.npz"
        np.savez(path, **data)
        return path, {"label": label, "group": "block"}
    path = folder / f"{name}.csv"
    data.to_csv(path, index=False)
    return path, {"label": label}


def open_set(path: str, options: tuple[tuple[str, str], ...]) -> Dataset:
    """The data set that ``metamae compare PATH --label ...`` opens."""
    return open_data(path, **dict(options)).dataset


def run_set(name: str, steps: int) -> Comparison:
    """Compare on one set, or go on with it."""
    path, said = write_set(name, RUNS / "data")
    compare = Compare(
        load=partial(open_set, str(path), tuple(said.items())),
        out=RUNS / name,
        device=torch.device("cpu"),
        seeds=SEEDS,
        draws=DRAWS,
        steps=steps,
    )
    return compare.run(Reporter(make_console()))


def summarise(comparison: Comparison, steps: int) -> dict[str, Any]:
    """A set in the result file."""
    return {
        "data": comparison.name,
        "what": (SETS[comparison.name].__doc__ or "").strip(),
        "facts": dict(comparison.facts),
        "steps": steps,
        "sentence": comparison.sentence,
        "decisions": [
            {
                "labels": comparison.curves.unit(v.decision.number),
                "recommended": comparison.curves.titles[v.decision.recommended],
                "rival": comparison.curves.titles[v.decision.rival],
                "pays": v.decision.pays,
                "validation": v.decision.difference.value,
                "test": v.difference.value,
                "low": v.difference.low,
                "high": v.difference.high,
                "was": v.word,
                "best": comparison.curves.titles[v.best],
                "regret": v.regret,
                "metric": comparison.curves.metric,
            }
            for v in comparison.verdicts
        ],
        "rows": rows_of(comparison),
    }


def make_page(sets: list[dict[str, Any]]) -> str:
    """The page: one line a set and number of labels, and the sentences."""
    header = (
        *("data", "labels", "recommended", "rather than"),
        *("gain on test rows", "on test rows that was", "best there", "regret"),
    )
    lines = []
    for one in sets:
        for d in one["decisions"]:
            gain = show_value(d["test"], d["metric"], sign=True)
            regret = show_value(d["regret"], d["metric"])
            told = (d["recommended"], d["rival"], gain, d["was"], d["best"], regret)
            lines.append((one["data"], d["labels"], *told))
    words = [d["was"] for one in sets for d in one["decisions"]]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    table = "\n".join(
        "| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *lines)
    )
    told = "\n".join(f"- **{one['data']}**: {one['what']} {one['sentence']}" for one in sets)
    return (
        "# Compare on data nobody tuned on\n\n"
        "`metamae compare` with fixed settings (`benchmarks/compare_sets.py`); recommendations are "
        "taken on validation cuts of the training rows, and judged on test rows that were looked "
        f"at once. Of {len(words)} recommendations: {counts}.\n\n{table}\n\n{told}\n\n"
        f"{_where(sets)}\n"
    )


def _where(sets: list[dict[str, Any]]) -> str:
    """How these were measured, and what was not."""
    missing = [name for name in SETS if name not in {one["data"] for one in sets}]
    kinds = dict.fromkeys(
        f"{one['steps']} steps of pretraining (the program's own are {STEPS}), "
        + ", ".join(one["facts"][key] for key in ("seeds, draws", "machine", "versions"))
        for one in sets
    )
    rest = f" Not run yet: {', '.join(missing)}." if missing else ""
    return f"Measured with {'; and with '.join(kinds)}.{rest}"


def main() -> None:
    """Run what is asked for, and write rows and page of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    done = []
    for name in options.only:
        comparison = run_set(name, options.steps)
        print(f"{name}: {comparison.sentence}\n{RUNS / name / PAGE}")
        done.append(summarise(comparison, options.steps))
    write_json(options.results, done)
    write_text(options.results.with_suffix(".md"), make_page(done))


if __name__ == "__main__":
    main()
