"""PAMAP2: physical activities of nine subjects, by three inertial units and a heart-rate monitor.

Recordings are stored whole; examples are windows of them, drawn as a pure function of the seed and
the row number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array, Partition, Task
from metamae.data.formats.tables import bounded_lines
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Option, Source, Stored, packed_or_not
from metamae.data.preparing.writer import Writer
from metamae.errors import DataError
from metamae.inputs import Inputs, Signal

CHANNELS, LENGTH, COLUMNS = 52, 320, 54
_LONGEST = 1 << 16
ACTIVITIES = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "Nordic walking",
    12: "ascending stairs",
    13: "descending stairs",
    16: "vacuum cleaning",
    17: "ironing",
    24: "rope jumping",
}
SUBJECTS = tuple(range(101, 110))
TEST_SUBJECTS = {"105+106": (105, 106), "105": (105,)}
HELD_OUT = (105, 106)
"""Subjects that never train, whichever of them are tested."""

WINDOWS = {"train": 50_000, "test": 10_000}
"""Windows of a probe, as published."""

_UNIT = tuple(
    ["temperature"]
    + [f"{what} {axis}" for what in ("acceleration 16 g", "acceleration 6 g") for axis in "xyz"]
    + [f"{what} {axis}" for what in ("gyroscope", "magnetometer") for axis in "xyz"]
    + [f"orientation {n}" for n in range(1, 5)]
)
CHANNEL_NAMES = (
    "heart rate",
    *(f"{place} {name}" for place in ("hand", "chest", "ankle") for name in _UNIT),
)


@dataclass(frozen=True)
class Windows:
    """Windows of segments of a long recording, drawn anew for every row number.

    Row ``i`` takes a segment uniformly, then a start uniformly in ``[0, rows - length)`` of it: a
    function of the seed and ``i`` alone, so the same row is the same window at every read.

    Attributes:
        recording: ``(rows, channels)``, memory-mapped.
        segments: ``(n, 2)`` first row and number of rows of each segment.
        count: Number of windows.
        length: Steps of a window.
        seed: Seed of the draws.
    """

    recording: Array
    segments: Array
    count: int
    length: int
    seed: int

    def __len__(self) -> int:
        """Number of windows."""
        return self.count

    def __getitem__(self, rows: Any) -> Array:
        """Windows ``(n, channels, length)`` of some rows."""
        numbers = np.arange(self.count)[rows] if isinstance(rows, slice) else np.asarray(rows)
        segment, start = self.place(numbers)
        first = self.segments[segment, 0] + start
        windows = [self.recording[f : f + self.length].T for f in np.atleast_1d(first)]
        stacked = np.stack(windows) if windows else np.zeros((0, CHANNELS, self.length), np.float32)
        return stacked if np.ndim(first) else stacked[0]

    def place(self, rows: Array) -> tuple[Array, Array]:
        """Segment and start of each row."""
        segment = (_uniform(self.seed, 2 * rows) * len(self.segments)).astype(np.int64)
        starts = self.segments[segment, 1] - self.length
        return segment, (_uniform(self.seed, 2 * rows + 1) * starts).astype(np.int64)


def _uniform(seed: int, counter: Array) -> Array:
    """Uniform numbers in ``[0, 1)`` as a hash of seed and counter (SplitMix64)."""
    with np.errstate(over="ignore"):
        x = np.asarray(counter).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    uniform: Array = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def _inputs(token_size: Sequence[int]) -> Inputs:
    return (
        Signal(
            name="signal",
            channels=CHANNELS,
            length=LENGTH,
            token_length=token_size[0],
            channel_names=CHANNEL_NAMES,
        ),
    )


def _prepare(raw: Raw, writer: Writer) -> None:
    bundle = raw.bundle("recordings")
    folder = "" if bundle.path.name == "Protocol" else "Protocol/"  # Optional has such files too
    names = {subject: bundle.one(f"{folder}subject{subject}.dat") for subject in SUBJECTS}
    rows = writer.array("recordings", (CHANNELS,), np.float32)
    segments: list[dict[str, int]] = []
    with raw.reporter.stage("reading PAMAP2", total=len(names), unit="subjects") as stage:
        for subject, name in names.items():
            with writer.reading(name), bundle.open(name) as file:
                table = fill_gaps(read_recording(file))
                for activity in ACTIVITIES:
                    joined = table[table[:, 1] == activity, 2:]
                    place = {"first": rows.rows, "rows": len(joined)}
                    segments.append({"subject": subject, "activity": activity} | place)
                    rows.extend(joined)
            stage.advance()
    classes = [ACTIVITIES[activity] for activity in label_map(raw.options["labels"])]
    classes += ["unused"] * (len(ACTIVITIES) - len(classes))
    writer.note(segments=segments, seed=0, classes=classes)


def read_recording(file: IO[bytes]) -> Array:
    """A recording ``(rows, 54)``: time, activity, heart rate, 17 columns for each of three units.

    Raises:
        DataError: another number of columns, or text that is no number.
    """
    try:
        lines = (line.decode("ascii") for line in bounded_lines(file, "a recording", _LONGEST))
        table = np.loadtxt(lines, dtype=np.float64, ndmin=2)
    except ValueError as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"expected numbers separated by blanks: {fault}") from fault
    if table.shape[1] != COLUMNS or len(table) == 0:
        raise DataError(f"expected rows of {COLUMNS} numbers, got a table {table.shape}")
    return table


def fill_gaps(table: Array) -> Array:
    """Interpolate missing cells along each column; ends take the nearest value that is there.

    A column without any value becomes zeros. The activity column is never missing.

    Example:
        >>> import numpy as np
        >>> from metamae.data.sources.pamap2 import fill_gaps
        >>> nan = np.nan
        >>> fill_gaps(np.array([[nan], [1.0], [nan], [3.0], [nan]])).ravel().tolist()
        [1.0, 1.0, 2.0, 3.0, 3.0]
    """
    filled = table.copy()
    place = np.arange(len(table))
    for column in filled.T:
        there = np.isfinite(column)
        column[~there] = np.interp(place[~there], place[there], column[there]) if there.any() else 0
    return filled


def _partitions(prepared: Stored, inputs: Inputs) -> dict[str, Partition]:
    recording = prepared.array("recordings")
    tested = TEST_SUBJECTS[prepared.options["test_subjects"]]
    labels = label_map(prepared.options["labels"])
    long = [s for s in prepared.facts["segments"] if s["rows"] > LENGTH and s["activity"] in labels]
    trained = [s for s in long if s["subject"] not in HELD_OUT]
    tests = [s for s in long if s["subject"] in tested]
    distinct = sum(s["rows"] - LENGTH for s in trained)
    seed = int(prepared.facts["seed"])

    def windows(segments: list[dict[str, int]], count: int, stream: str, probe: bool) -> Partition:
        if not segments:
            raise DataError(
                f"expected recordings longer than {LENGTH} rows of the {stream} subjects, found "
                "none; were their files left out? See: metamae data check pamap2"
            )
        table = np.array([[s["first"], s["rows"]] for s in segments], np.int64)
        drawn = Windows(recording, table, count, LENGTH, fold(seed, f"pamap2 {stream}"))
        activity = np.array([labels[s["activity"]] for s in segments], np.int64)
        return Partition(
            arrays={"signal": drawn},
            inputs=inputs,
            labels=activity[drawn.place(np.arange(count))[0]] if probe else None,
        )

    return {
        "pretrain": windows(trained, distinct, "pretrain", False),
        "train": windows(trained, WINDOWS["train"], "train", True),
        "test": windows(tests, WINDOWS["test"], "test", True),
    }


def label_map(kind: str) -> dict[int, int]:
    """Activity id to label: its place in the list. DABS left out ironing, but kept 12 outputs."""
    listed = [a for a in ACTIVITIES if kind == "all" or a != 17]
    return {activity: label for label, activity in enumerate(listed)}


SOURCES = (
    Source(
        name="pamap2",
        modality="time series",
        origin="PAMAP2_Dataset.zip from the UCI machine learning repository",
        inputs=_inputs,
        token_size=(5,),
        layouts=packed_or_not(
            "recordings",
            {"recordings": ("PAMAP2_Dataset.zip", "pamap2+physical+activity+monitoring.zip")},
            unpacked=("PAMAP2_Dataset", "Protocol"),
            dabs="sensor/pamap2/PAMAP2_Dataset",
            metamae="sensor/pamap2",
        ),
        contents={"recordings": Content(r"Protocol/subject10\d\.dat", len(SUBJECTS))},
        prepare=_prepare,
        task=Task.of_classes(ACTIVITIES.values(), complete=False),
        pretrained_on="pamap2",
        split="subjects 105 and 106 are held out, the other seven train; windows are drawn "
        "uniformly over (subject, activity) pairs longer than 320 rows; the probe draws 50,000 "
        "and 10,000 once, pretraining has as many windows as there are start positions",
        options={
            "labels": Option(("all", "dabs"), "12 activities, or DABS's 11 (no ironing)"),
            "test_subjects": Option(("105+106", "105"), "as MetaMAE, or as DABS"),
        },
        partitions=_partitions,
    ),
)
