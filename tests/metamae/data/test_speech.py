"""Speech archives in their published layouts: clips of every length and rate become pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources import speech
from metamae.data.sources.files import open_files
from metamae.data.sources.mel import SAMPLES, log_mel
from tests.metamae.data import packing
from tests.metamae.data.packing import pack, sound

pytest.importorskip("soundfile", reason="soundfile is not installed")


@pytest.mark.parametrize("length", [1_000, SAMPLES, SAMPLES + 30_000])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_clips_of_every_length_and_rate(length: int, rate: int, tmp_path: Path) -> None:
    place = pack({"a.flac": sound(3, samples=length, rate=rate, kind="FLAC")}, tmp_path / "in")
    with open_files(place, tmp_path) as files:
        head = speech.spectrograms(files, "a.flac")
        both = speech.spectrograms(files, "a.flac", tail=True)
    assert head.shape == (1, 1, 224, 224)
    assert head.dtype == np.float16
    assert len(both) == (2 if length > SAMPLES else 1)
    assert np.array_equal(both[0], head[0])
    wave = np.zeros(max(length, SAMPLES), np.float32)
    wave[:length] = 0.3 * np.sin(2 * np.pi * 500 / rate * np.arange(length))
    np.testing.assert_allclose(head[0, 0][:50], log_mel(wave[:SAMPLES], rate)[:50], atol=0.5)
    if len(both) == 2:
        np.testing.assert_allclose(both[1, 0][:50], log_mel(wave[-SAMPLES:], rate)[:50], atol=0.5)


def check(found: speech.Clips, classes: int, train: int, test: int) -> None:
    assert len(found.halves.classes) == classes
    assert (len(found.halves.train), len(found.halves.test)) == (train, test)
    for half in (found.halves.train, found.halves.test):
        assert found.read(half.files[0]).shape == (1, 224, 224)


@pytest.mark.parametrize("place", ["dev-clean.tar.gz", "librispeech"])
def test_librispeech(place: str, tmp_path: Path) -> None:
    packed = pack(packing.librispeech("dev-clean"), tmp_path / place)
    with open_files(packed, tmp_path) as files:
        found = speech.librispeech(files)
        check(found, 2, 8, 2)
        with pytest.raises(DataError, match="expected a folder train-clean-100 in"):
            speech.librispeech_pretraining(files, "train-clean-100")
    packed = pack(packing.librispeech("train-other-500"), tmp_path / f"more-{place}")
    with open_files(packed, tmp_path) as files:
        listing, clips = speech.librispeech_pretraining(files, "train-other-500")
        assert listing.files == sorted(listing.files)
        assert len(listing) == 10
        assert len(speech.spectrograms(clips, listing.files[0], tail=True)) == 2


@pytest.mark.parametrize("place", ["AudioMNIST.zip", "AudioMNIST"])
def test_audiomnist(place: str, tmp_path: Path) -> None:
    with open_files(pack(packing.audiomnist(), tmp_path / place), tmp_path) as files:
        found = speech.audiomnist(files)
        check(found, 10, 20, 10)
        assert all("/05/" in name for name in found.halves.test.files)


@pytest.mark.parametrize("task", ["location", "action", "object"])
def test_fluent(task: str, tmp_path: Path) -> None:
    with open_files(pack(packing.fluent(), tmp_path / "fluent.zip"), tmp_path) as files:
        found = speech.fluent(files, task)
        check(found, {"location": 4, "action": 6, "object": 14}[task], 3, 1)


@pytest.mark.parametrize("as_published", [False, True])
def test_google_speech(as_published: bool, tmp_path: Path) -> None:
    place = pack(packing.google_speech(), tmp_path / "speech_commands_v0.02.tar.gz")
    with open_files(place, tmp_path) as files:
        found = speech.google_speech(files, as_published=as_published)
        check(found, 36, 6 if as_published else 3, 2)
        leaked = set(found.halves.train.files) & set(found.halves.test.files)
        assert len(leaked) == (2 if as_published else 0)


def test_voxceleb1(tmp_path: Path) -> None:
    with open_files(pack(packing.voxceleb1(), tmp_path / "voxceleb1"), tmp_path) as files:
        found = speech.voxceleb1(files)
        check(found, 2, 4, 2)
        assert found.halves.test.files[0] == "id10001/video3/00003.wav"


@pytest.mark.parametrize(
    ("make", "absent", "reader", "message"),
    [
        (packing.voxceleb1, "iden_split.txt", "voxceleb1", r"expected a file iden_split\.txt"),
        (
            packing.google_speech,
            "./validation_list.txt",
            "google_speech",
            r"expected a file validation_list\.txt",
        ),
    ],
)
def test_a_missing_list_is_named(
    make: object, absent: str, reader: str, message: str, tmp_path: Path
) -> None:
    assert callable(make)
    contents = make()
    del contents[absent]
    with (
        open_files(pack(contents, tmp_path / "in"), tmp_path) as files,
        pytest.raises(DataError, match=message),
    ):
        getattr(speech, reader)(files)


def test_a_damaged_clip_is_named(tmp_path: Path) -> None:
    contents = packing.voxceleb1()
    contents["wav/id10001/video3/00003.wav"] = b"RIFF"
    with open_files(pack(contents, tmp_path / "in"), tmp_path) as files:
        found = speech.voxceleb1(files)
        with pytest.raises(DataError, match=r"expected sound in id10001/video3/00003\.wav"):
            found.read("id10001/video3/00003.wav")


def test_the_published_scaling_is_one_pair_for_each_set() -> None:
    scaling = speech.scaling("audiomnist")
    assert (float(scaling.mean), float(scaling.scale)) == pytest.approx((-90.293, 11.799))
    (spec,) = speech.inputs()
    assert (spec.tokens, spec.grid) == (196, (14, 14))
