"""PAMAP2: gaps are filled, windows are a pure function of seed and row, subjects never mix."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from metamae import DataError
from metamae.data.dataset import Array
from metamae.data.sources.pamap2 import (
    ACTIVITIES,
    CHANNELS,
    COLUMNS,
    LENGTH,
    SUBJECTS,
    Windows,
    fill_gaps,
    read_recording,
)
from tests.metamae.data.making import made, put, skipping

WALKING, IRONING, ROPE = 4, 17, 24


def recording(subject: int, bouts: list[tuple[int, int]]) -> bytes:
    """Bouts of (activity, rows). Channel c of step t holds ``subject * 2000 + t + c / 100``."""
    lines, t = [], 0
    for activity, rows in bouts:
        for _ in range(rows):
            values = [f"{subject * 2000 + t + c / 100:.2f}" for c in range(CHANNELS)]
            lines.append(" ".join([f"{t / 100:.2f}", str(activity), *values]))
            t += 1
    return ("\n".join(lines) + "\n").encode()


BOUTS = [(0, 5), (WALKING, 200), (0, 10), (IRONING, 330), (WALKING, 140), (ROPE, 321), (1, 320)]


def archive(path: Path, prefix: str = "PAMAP2_Dataset/", **changes: bytes) -> Path:
    members = {f"{prefix}Protocol/subject{s}.dat": recording(s, BOUTS) for s in SUBJECTS}
    members |= {f"{prefix}Protocol/{name}.dat": content for name, content in changes.items()}
    members |= {f"{prefix}Optional/subject101.dat": b"not read", f"{prefix}readme.pdf": b""}
    return put(path, members)


def test_all_layouts_give_the_same(tmp_path: Path) -> None:
    places = {
        "PAMAP2_Dataset.zip": "PAMAP2_Dataset/",
        "pamap2/PAMAP2_Dataset.zip": "PAMAP2_Dataset/",
        "PAMAP2_Dataset": "",
        "sensor/pamap2": "PAMAP2_Dataset/",
        "sensor/pamap2/": "",
    }
    found = []
    for number, (place, prefix) in enumerate(places.items()):
        archive(tmp_path / str(number) / place, prefix)
        data = made("pamap2", tmp_path / str(number)).dataset()
        batch = data.need("train").batch([3, 5, 8])["signal"]
        found.append((batch, data.need("test").labels, data.card["layout"]))
    assert [layout for *_, layout in found] == [
        *("published", "published", "unpacked", "dabs", "metamae"),
    ]
    for batch, labels, _ in found[1:]:
        assert torch.equal(batch, found[0][0])
        assert np.array_equal(labels, found[0][1])


def test_windows_are_of_one_subject_and_activity(tmp_path: Path) -> None:
    archive(tmp_path / "PAMAP2_Dataset.zip")
    data = made("pamap2", tmp_path).dataset()
    train, test = data.need("train"), data.need("test")
    assert (len(train), len(test)) == (50_000, 10_000)
    # Of each of seven subjects: walking 340 rows, ironing 330, rope jumping 321; lying is short.
    assert len(data.need("pretrain")) == 7 * (20 + 10 + 1)
    assert train.batch([0])["signal"].shape == (1, CHANNELS, LENGTH)
    names = list(ACTIVITIES)
    assert set(np.unique(train.labels)) == {names.index(a) for a in (WALKING, IRONING, ROPE)}
    rows = list(range(60))
    windows = test.batch(rows)["signal"].numpy().astype(np.float64)
    for window, label in zip(windows, test.labels[rows], strict=True):
        subject, t = divmod(window[0], 2000)
        assert set(subject) <= {105.0, 106.0}
        assert len(set(subject)) == 1
        np.testing.assert_allclose(window[1] - window[0], 0.01, atol=0.01)
        first, last = int(t[0]), int(t[-1])
        kind = names[label]
        if kind == WALKING:  # 5..204 and 545..684, glued together
            joined = [*range(5, 205), *range(545, 685)]
            assert t.astype(int).tolist() == joined[joined.index(first) :][:LENGTH]
        else:
            assert last - first == LENGTH - 1
            assert (215 <= first < 225) if kind == IRONING else first == 685
    counts = np.bincount(train.labels, minlength=12)[[names.index(a) for a in (4, 17, 24)]]
    assert np.allclose(counts / len(train), 1 / 3, atol=0.01)  # uniform over pairs, not rows


def test_options_of_the_benchmark(tmp_path: Path) -> None:
    archive(tmp_path / "PAMAP2_Dataset.zip")
    done = made("pamap2", tmp_path, options={"labels": "dabs", "test_subjects": "105"})
    data = done.dataset()
    test = data.need("test")
    assert set((test.batch(range(80))["signal"][:, 0, 0] // 2000).tolist()) == {105.0}
    assert set(np.unique(test.labels)) == {3, 10}  # rope jumping moves up: there is no ironing
    assert data.need_task().outputs == 12
    assert data.need_task().classes[10:] == ("rope jumping", "unused")
    train = data.need("train").batch(range(200))["signal"]
    assert 106.0 not in (train[:, 0, 0] // 2000).tolist()


def test_a_window_depends_on_seed_and_row_alone() -> None:
    rows = np.arange(4000, dtype=np.float32)
    values, segments = np.stack([rows, -rows], axis=1), np.array([[0, 1000], [1000, 3000]])
    few, many = (Windows(values, segments, count, 320, seed=5) for count in (10, 10_000))
    assert np.array_equal(few[:], many[slice(0, 10)])
    assert np.array_equal(few[[3]], many[np.array([3])])
    assert np.array_equal(few[3], many[[3]][0])
    assert few[:].shape == (10, 2, 320)
    assert not np.array_equal(few[:], Windows(values, segments, 10, 320, seed=6)[:])
    segment, start = many.place(np.arange(10_000))
    assert abs(segment.mean() - 0.5) < 0.02
    assert start[segment == 0].min() == 0
    assert start[segment == 0].max() == 679
    assert abs(start[segment == 1].mean() / 2680 - 0.5) < 0.02
    assert abs(np.corrcoef(segment, start / (680 + 2000 * segment))[0, 1]) < 0.03


def column(*values: float) -> Array:
    return np.array(values)[:, None]


def test_gaps_are_filled_along_time() -> None:
    nan = np.nan
    table = np.hstack(
        [column(nan, 2, nan, nan, 8, nan), column(1, 2, 3, 4, 5, 6), np.full((6, 1), nan)]
    )
    expected = np.array([[2, 1, 0], [2, 2, 0], [4, 3, 0], [6, 4, 0], [8, 5, 0], [8, 6, 0]])
    np.testing.assert_allclose(fill_gaps(table), expected)
    assert np.isnan(table[0, 0])  # the caller's table is as it was


def test_heart_rate_with_leading_and_long_gaps_is_finite(tmp_path: Path) -> None:
    lines = recording(101, BOUTS).decode().splitlines()
    for i, line in enumerate(lines):
        cells = line.split(" ")
        cells[2] = "NaN" if i % 11 or i < 300 else cells[2]
        cells[9] = "NaN" if 400 <= i < 700 else cells[9]
        lines[i] = " ".join(cells)
    archive(tmp_path / "PAMAP2_Dataset.zip", subject101="\n".join(lines).encode())
    done = made("pamap2", tmp_path)
    values = done.array("recordings")
    assert np.isfinite(values).all()
    # Subject 101, walking, its first row: step 5, before the first heart rate at step 308.
    walking = next(s for s in done.facts["segments"] if s["subject"] == 101 and s["activity"] == 4)
    first = walking["first"]
    assert values[first, 0] == pytest.approx(202_308, abs=0.01)
    assert values[first + 200 + 5, 7] == pytest.approx(202_550.07, abs=0.02)


@pytest.mark.parametrize("content", [b"1 2 3\n", b"a b\n", b"", recording(103, BOUTS)[:-30]])
def test_one_damaged_recording_is_named_or_left_out(content: bytes, tmp_path: Path) -> None:
    archive(tmp_path / "PAMAP2_Dataset.zip", subject103=content)
    name = "PAMAP2_Dataset/Protocol/subject103.dat"
    done, skipped = skipping("pamap2", tmp_path, f"{name}: .*skip")
    assert skipped == [name]
    assert len(done.dataset().need("pretrain")) == 6 * 31


def test_a_recording_of_one_line_is_a_table() -> None:
    table = read_recording(io.BytesIO(recording(101, [(WALKING, 1)])))
    assert table.shape == (1, COLUMNS)
    assert table[0, :3].tolist() == [0, WALKING, 202_000]


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    archive(tmp_path / "PAMAP2_Dataset")
    (tmp_path / "PAMAP2_Dataset/PAMAP2_Dataset/Protocol/subject109.dat").unlink()
    with pytest.raises(DataError, match=r"one file Protocol/subject109.dat in .*found none"):
        made("pamap2", tmp_path)


def test_recordings_that_are_all_short_are_refused(tmp_path: Path) -> None:
    short = {f"subject{s}": recording(s, [(WALKING, 320)]) for s in SUBJECTS}
    archive(tmp_path / "PAMAP2_Dataset.zip", **short)
    with pytest.raises(DataError, match="recordings longer than 320 rows"):
        made("pamap2", tmp_path).dataset()
