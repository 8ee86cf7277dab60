"""Choose step size and contrast weight of the pocket presets, on a validation cut of training rows.

Test rows are never touched: the probe is fitted on about three quarters of the labelled training
rows and judged on the rest, which are other subjects, clusters or places where the set knows them.

    python benchmarks/tune_pocket.py --datasets vowels digits --out benchmarks/results/tuning.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.pocket import POCKET
from metamae.evaluation.features import Features, extract_features
from metamae.evaluation.probe import fit_probe, standardise
from metamae.files import write_json
from metamae.training.pretraining import pretrain
from metamae.training.provenance import device_name, revision

POCKET_DATA = Path(__file__).parents[1] / "metamae" / "data" / "pocket"
STEP_SIZES = (0.5, 5.0, 20.0)
WEIGHTS = (0.1, 0.5)


def groups(name: str, rows: int) -> np.ndarray:
    """What must not be on both sides of the cut."""
    with np.load(POCKET_DATA / f"{name}.npz") as arrays:
        if name == "sensors":
            return arrays["subject_train"]
        if name == "voices":
            return arrays["prompt_train"]
        if name == "peptides":
            return arrays["cluster_train"]
        if name == "genomes":
            return arrays["start_train"] // 50_000
        if name == "multispectral_spatial":
            return arrays["position_train"][:, 0] // 6
    return np.arange(rows)


def cut(name: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to judge by."""
    group = groups(name, len(labels))
    names = np.random.default_rng(0).permutation(np.unique(group))
    held = np.isin(group, names[: max(1, len(names) // 4)])
    return np.flatnonzero(~held), np.flatnonzero(held)


def few_labels(fit: torch.Tensor, y: np.ndarray, judge: torch.Tensor, truth: np.ndarray) -> float:
    """Accuracy with 5 labels a class, mean of ten draws."""
    scores = []
    for draw in range(10):
        rng = np.random.default_rng(draw)
        rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:5] for c in np.unique(y)])
        a, b = standardise(fit[rows], judge)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(max_iter=300).fit(a.numpy(), y[rows])
        scores.append(model.score(b.numpy(), truth))
    return float(np.mean(scores))


def score(config: Config, dataset: Dataset) -> dict[str, object]:
    """Pretrain and judge one setting."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = pretrain(config, dataset, Path(folder))
        seconds = time.perf_counter() - start
    features, labels = extract_features(done.method, dataset.train), dataset.train.labels
    fit, judge = cut(config.dataset, labels)
    rows = Features(
        task=dataset.need_task(),
        train=features[fit],
        train_labels=labels[fit],
        test=features[judge],
        test_labels=labels[judge],
    )
    probe = fit_probe(rows, config.probe)
    return {
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "steps": config.training.steps,
        "step_size": config.adaptation.step_size,
        "contrast_weight": config.contrast.weight,
        "validation_probe": round(probe.value, 4),
        "validation_five_labels": round(
            few_labels(features[fit], labels[fit], features[judge], labels[judge]), 4
        ),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune the pocket presets.")
    parser.add_argument("--datasets", nargs="+", default=list(POCKET))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--step-sizes", type=float, nargs="+", default=STEP_SIZES)
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.json"))
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    keys = ("dataset", "method", "seed", "step_size", "contrast_weight")
    seen = {tuple(row[key] for key in keys) for row in rows}
    for name, seed in product(options.datasets, range(options.seeds)):
        dataset = load_dataset(name)
        base = make_config(name, seed=seed)
        settings = [replace(base, method="mae")]
        for step_size, weight in product(options.step_sizes, options.weights):
            adaptation = replace(base.adaptation, step_size=step_size)
            contrast = replace(base.contrast, weight=weight)
            settings.append(replace(base, adaptation=adaptation, contrast=contrast))
        for config in settings:
            key = (name, config.method, seed, config.adaptation.step_size, config.contrast.weight)
            if key in seen:
                continue
            rows.append(score(config, dataset))
            print(rows[-1], flush=True)
            report = {"hardware": device_name(torch.device("cpu")), "revision": revision()}
            write_json(options.out, report | {"torch": str(torch.__version__), "rows": rows})


if __name__ == "__main__":
    main()
