"""Small own data, as a newcomer would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import wavfile


def make_people(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """A table with names, numbers, gaps, heavy tails, categories, dates and two classes."""
    rng = np.random.default_rng(seed)
    people = pd.DataFrame(
        {
            "person": [f"p{row:03d}" for row in range(rows)],
            "age": rng.normal(40, 10, rows).round(1),
            "income": np.exp(rng.normal(9, 3, rows)).round(2),
            "town": rng.choice(["Rome", "Oslo", "Bonn"], rows),
            "smoker": rng.choice([True, False], rows),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, rows), "D"),
            "site": rng.choice(["a", "b", "c", "d", "e"], rows),
            "ill": rng.choice(["no", "yes"], rows),
        }
    )
    people.loc[::7, "age"] = np.nan
    people.loc[::5, "town"] = None
    return people


def make_pictures(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    """Pictures of differing sizes in a folder for each class."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for place in range(each):
            size = (12 + place, 20 - place, 3)
            pixels = rng.integers(0, 100, size) + 100 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{place}.png")
    return root


def make_sounds(root: Path, each: int = 3) -> Path:
    """Short tones, low and high."""
    times = np.arange(2000) / 8000
    for name, pitch in (("low", 200), ("high", 1500)):
        (root / name).mkdir(parents=True)
        for place in range(each):
            wave = 8000 * np.sin(2 * np.pi * (pitch + 10 * place) * times)
            wavfile.write(root / name / f"{place}.wav", 8000, wave.astype(np.int16))
    return root


def make_signals(rows: int = 24, seed: int = 0) -> dict[str, Any]:
    """Signals of two channels and 40 steps, with labels of three classes."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(rows, 2, 40)), "y": np.arange(rows) % 3}
