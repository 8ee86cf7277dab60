"""The published parts of the speech sets, from names and tables alone."""

from __future__ import annotations

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources.speech import lists as lists


def test_librispeech_cuts_every_speaker_by_one_generator() -> None:
    """Speakers by number, not by text; the generator goes on from one speaker to the next."""
    clips = {1000: 5, 84: 7, 251: 5}
    names = [f"{who}/7/{who}-7-{n:04d}.flac" for who in clips for n in range(clips[who])]
    halves = lists.librispeech(reversed(names))
    random = np.random.RandomState(42)
    train, test = [], []
    for who in (84, 251, 1000):
        order = random.permutation(clips[who])
        cut = {5: 4, 7: 5}[clips[who]]  # 80 %, rounded down
        train += [f"{who}/7/{who}-7-{n:04d}.flac" for n in order[:cut]]
        test += [f"{who}/7/{who}-7-{n:04d}.flac" for n in order[cut:]]
    assert halves.classes == ("84", "251", "1000")
    assert (halves.train.files, halves.test.files) == (train, test)
    assert halves.train.labels == [0] * 5 + [1] * 4 + [2] * 4
    assert halves.test.labels == [0, 0, 1, 2]


def test_librispeech_refuses_a_folder_that_is_no_speaker() -> None:
    with pytest.raises(
        DataError, match=r"expected the folder of a speaker's number in x/7/x\.flac"
    ):
        lists.librispeech(["x/7/x.flac"])


def test_audiomnist_is_cut_by_speaker() -> None:
    names = [f"{who:02d}/{digit}_{who:02d}_0.wav" for who in range(1, 61) for digit in (3, 9)]
    halves = lists.audiomnist(names)
    testing = {int(name[:2]) for name in halves.test.files}
    assert testing == {5, 13, 18, 22, 26, 32, 33, 42, 45, 51, 52, 60}
    assert {int(name[:2]) for name in halves.train.files} == set(range(1, 61)) - testing
    assert (halves.train.files[:2], halves.train.labels[:2]) == (
        ["01/3_01_0.wav", "01/9_01_0.wav"],
        [3, 9],
    )
    with pytest.raises(DataError, match=r"file name 01/x_01_0\.wav, got 'x'"):
        lists.audiomnist(["01/x_01_0.wav"])


HEADER = ",path,speakerId,transcription,action,object,location\n"
TABLES = {
    "train_data.csv": HEADER + '0,wavs/a.wav,1,"Change, please",change language,Korean,none\n',
    "valid_data.csv": HEADER + "0,wavs/b.wav,2,Heat,increase,heat,washroom\n",
    "test_data.csv": HEADER + "0,wavs/c.wav,3,Shoes,bring,shoes,none\n",
}


@pytest.mark.parametrize(
    ("task", "count", "train", "test"),
    [
        ("action", 6, [0, 3], [5]),
        ("object", 14, [11, 4], [9]),
        ("location", 4, [0, 3], [0]),
    ],
)
def test_fluent_reads_three_tables(
    task: str, count: int, train: list[int], test: list[int]
) -> None:
    halves = lists.fluent(TABLES, task)
    assert len(halves.classes) == count
    assert halves.train.files == ["wavs/a.wav", "wavs/b.wav"]  # validation rows are for training
    assert (halves.train.labels, halves.test.labels) == (train, test)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,a.wav,1,x,shout,none,none\n", "line 2 of train_data.csv, got 'shout'"),
        ("0,a.wav\n", "expected columns path and action in line 2 of train_data.csv"),
    ],
)
def test_fluent_refuses_an_unknown_command(row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lists.fluent(TABLES | {"train_data.csv": HEADER + row}, "action")


WORDS = ["cat/a.wav", "bird/b.wav", "learn/c.wav", "cat/d.wav", "_background_noise_/hum.wav"]


def test_google_speech_keeps_test_clips_out_of_training() -> None:
    halves = lists.google_speech(WORDS, testing=["cat/d.wav"], validation=["bird/b.wav"])
    assert len(halves.classes) == 36
    assert halves.train.files == [
        "_background_noise_/hum.wav",
        "bird/b.wav",
        "cat/a.wav",
        "learn/c.wav",
    ]
    assert halves.train.labels == [35, 22, 21, 34]
    assert (halves.test.files, halves.test.labels) == (["cat/d.wav"], [21])


def test_google_speech_as_published_trains_on_test_clips() -> None:
    halves = lists.google_speech(
        WORDS, testing=["cat/d.wav"], validation=["bird/b.wav"], as_published=True
    )
    assert sorted(halves.train.files) == sorted([*WORDS, "bird/b.wav"])
    assert halves.test.files == ["cat/d.wav"]


def test_google_speech_refuses_an_unknown_word() -> None:
    with pytest.raises(DataError, match=r"the folder of banana/a\.wav, got 'banana'"):
        lists.google_speech(["banana/a.wav"], [], [])


def test_voxceleb_follows_the_official_parts() -> None:
    halves = lists.voxceleb(["1 id2/x/1.wav", "2 id1/x/1.wav", "3 id2/y/1.wav", "3 id1/y/2.wav"])
    assert halves.classes == ("id1", "id2")
    assert (halves.train.files, halves.train.labels) == (["id2/x/1.wav", "id1/x/1.wav"], [1, 0])
    assert (halves.test.files, halves.test.labels) == (["id2/y/1.wav", "id1/y/2.wav"], [1, 0])


@pytest.mark.parametrize("line", ["4 id1/x/1.wav", "id1/x/1.wav", "1 file.wav"])
def test_voxceleb_refuses_a_damaged_list(line: str) -> None:
    with pytest.raises(DataError, match=r"in line 2 of iden_split\.txt"):
        lists.voxceleb(["1 id1/x/1.wav", line])
