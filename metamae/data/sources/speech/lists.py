"""Which clips of the speech sets are in which part, and their labels: pure functions of names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from metamae.data.preparing.listing import Halves, cut_per_class, index_of
from metamae.errors import DataError

AUDIOMNIST_TEST = frozenset((5, 13, 18, 22, 26, 32, 33, 42, 45, 51, 52, 60))
"""Speakers of AudioMNIST kept for testing."""

FLUENT: Mapping[str, tuple[str, ...]] = {
    "location": ("none", "kitchen", "bedroom", "washroom"),
    "action": ("change language", "activate", "deactivate", "increase", "decrease", "bring"),
    "object": (
        *("none", "music", "lights", "volume", "heat", "lamp", "newspaper", "juice", "socks"),
        *("shoes", "Chinese", "Korean", "English", "German"),
    ),
}
"""Classes of the three Fluent Speech tasks, in the published order."""

FLUENT_TABLES = ("train_data.csv", "valid_data.csv", "test_data.csv")
"""Validation rows are for training too."""

COMMANDS = (
    *("eight", "right", "happy", "three", "yes", "up", "no", "stop", "on", "four", "nine", "zero"),
    *("down", "go", "six", "two", "left", "five", "off", "seven", "one", "cat", "bird", "marvin"),
    *("wow", "tree", "dog", "sheila", "bed", "house", "follow", "visual", "backward", "forward"),
    *("learn", "_background_noise_"),
)
"""Classes of Google Speech Commands, in the published order."""


def librispeech(names: Iterable[str]) -> Halves:
    """Speaker identification on dev-clean: each speaker's utterances cut 80/20.

    Args:
        names: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac``.
    """
    speakers: dict[int, list[str]] = {}
    for name in sorted(names):
        speakers.setdefault(_number(name.split("/")[0], name), []).append(name)
    ids = sorted(speakers)
    units = [[[file] for file in speakers[speaker]] for speaker in ids]
    return cut_per_class(units, [str(speaker) for speaker in ids], range(len(ids)))


def audiomnist(names: Iterable[str]) -> Halves:
    """Spoken digits, cut by speaker.

    Args:
        names: ``NN/DIGIT_SPEAKER_REPETITION.wav`` with ``NN`` the speaker, 01 to 60.
    """
    halves = Halves(tuple("0123456789"))
    for name in sorted(names):
        folder, file = name.split("/")[-2:]
        half = halves.test if _number(folder, name) in AUDIOMNIST_TEST else halves.train
        half.add(name, index_of(file.split("_")[0], halves.classes, f"the file name {name}"))
    return halves


def fluent(tables: Mapping[str, str], task: str) -> Halves:
    """Spoken commands; training and validation rows together are the training part.

    Args:
        tables: Text of :data:`FLUENT_TABLES` by name.
        task: ``location``, ``action`` or ``object``.
    """
    halves = Halves(FLUENT[task])
    parts = (halves.train, halves.train, halves.test)
    for name, half in zip(FLUENT_TABLES, parts, strict=True):
        for number, row in enumerate(csv.DictReader(io.StringIO(tables[name])), start=2):
            if row.get("path") is None or row.get(task) is None:
                raise DataError(f"expected columns path and {task} in line {number} of {name}")
            half.add(row["path"], index_of(row[task], halves.classes, f"line {number} of {name}"))
    return halves


def google_speech(
    names: Iterable[str],
    testing: Sequence[str],
    validation: Sequence[str],
    *,
    as_published: bool = False,
) -> Halves:
    """Single words; the files of the testing list are the test part, all others are for training.

    The published code compares list lines that still end in a newline with file names, so that it
    removes nothing: ``as_published`` keeps every test clip in the training part, and adds the
    validation clips a second time. The numbers in the paper were measured so.

    Args:
        names: ``WORD/FILE.wav``.
        testing: Lines of ``testing_list.txt``, without newlines.
        validation: Lines of ``validation_list.txt``.
        as_published: Whether test clips leak into training.
    """
    halves = Halves(COMMANDS)
    held_out = set() if as_published else set(testing)
    train = [name for name in sorted(names) if name not in held_out]
    for name in (*train, *(validation if as_published else ())):
        halves.train.add(name, _command(name))
    for name in testing:
        halves.test.add(name, _command(name))
    return halves


def _command(name: str) -> int:
    return index_of(name.split("/")[0], COMMANDS, f"the folder of {name}")


def voxceleb(lines: Iterable[str]) -> Halves:
    """Speaker identification; parts 1 and 2 of the official split are for training, 3 for testing.

    Args:
        lines: Lines of ``iden_split.txt``: part and path.
    """
    train: list[str] = []
    test: list[str] = []
    for number, line in enumerate(lines, start=1):
        part, _, path = line.partition(" ")
        if part not in ("1", "2", "3") or "/" not in path:
            raise DataError(
                f"expected a part (1, 2 or 3) and a path in line {number} of iden_split.txt, "
                f"got {line!r}"
            )
        (test if part == "3" else train).append(path)
    ids = sorted({path.split("/")[0] for path in (*train, *test)})
    rank = {speaker: number for number, speaker in enumerate(ids)}
    halves = Halves(tuple(ids))
    for half, paths in ((halves.train, train), (halves.test, test)):
        for path in paths:
            half.add(path, rank[path.split("/")[0]])
    return halves


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise DataError(f"expected the folder of a speaker's number in {name}, got {text!r}")
    return int(text)
