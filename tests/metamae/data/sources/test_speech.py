"""Speech archives in every accepted layout: clips of every length and rate become pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from metamae import DataError
from metamae.data.formats.mel import SAMPLES, log_mel
from metamae.data.preparing.prepared import Prepared
from metamae.data.sources.speech.sets import PRETRAINING, spectrograms
from metamae.training.batches import batch_indices
from tests.metamae.data import packing
from tests.metamae.data.making import made, skipping
from tests.metamae.data.packing import pack, sound

pytest.importorskip("soundfile", reason="soundfile is not installed")


@pytest.mark.parametrize("length", [1_000, SAMPLES, SAMPLES + 30_000])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_clips_of_every_length_and_rate(length: int, rate: int) -> None:
    content = sound(3, samples=length, rate=rate, kind="FLAC")
    head = spectrograms(content, "a.flac")
    both = spectrograms(content, "a.flac", tail=True)
    assert head.shape == (1, 1, 224, 224)
    assert head.dtype == np.float16
    assert len(both) == (2 if length > SAMPLES else 1)
    assert np.array_equal(both[0], head[0])
    wave = np.zeros(max(length, SAMPLES), np.float32)
    wave[:length] = 0.3 * np.sin(2 * np.pi * 500 / rate * np.arange(length))
    loud = slice(0, 20)  # far from the floor, where sixteen bits of the file would show
    np.testing.assert_allclose(head[0, 0][loud], log_mel(wave[:SAMPLES], rate)[loud], atol=0.5)
    if len(both) == 2:
        tail = log_mel(wave[-SAMPLES:], rate)
        np.testing.assert_allclose(both[1, 0][loud], tail[loud], atol=0.5)


def flat(make: Callable[[], dict[str, bytes]], root: str) -> dict[str, bytes]:
    return {f"{root}/{name.removeprefix('./')}": content for name, content in make().items()}


def voxceleb_archives() -> dict[str, Mapping[str, bytes]]:
    files = packing.voxceleb1()
    return {
        "vox1_dev_wav.zip": {name: one for name, one in files.items() if "id10001" in name},
        "vox1_test_wav.zip": {name: one for name, one in files.items() if "id10002" in name},
        ".": {"iden_split.txt": files["iden_split.txt"]},
    }


# Classes, training and test clips; then where to put which files, by layout.
Places = Mapping[str, Mapping[str, bytes]]
SETS: dict[str, tuple[tuple[int, int, int], dict[str, Places]]] = {
    "audiomnist": (
        (10, 10, 10),
        {
            "published": {"AudioMNIST-master.zip": flat(packing.audiomnist, "AudioMNIST-master")},
            "dabs": {"speech": flat(packing.audiomnist, "AudioMNIST")},
        },
    ),
    **{
        f"fluent_{task}": (
            (classes, 3, 1),
            {
                "published": {"fluent_speech_commands_dataset.zip": packing.fluent()},
                "dabs": {"speech/fluent_speech": packing.fluent()},
                "metamae": {"speech": packing.fluent()},
            },
        )
        for task, classes in (("location", 4), ("action", 6), ("object", 14))
    },
    "google_speech": (
        (36, 3, 2),
        {
            "published": {"speech_commands_v0.02.tar.gz": packing.google_speech()},
            "dabs": {"speech": flat(packing.google_speech, "google_speech")},
        },
    ),
    "voxceleb1": (
        (2, 4, 2),
        {
            "published": voxceleb_archives(),
            "dabs": {"speech": flat(packing.voxceleb1, "voxceleb1")},
        },
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_every_layout_gives_the_same_set(name: str, tmp_path: Path) -> None:
    (classes, train, test), layouts = SETS[name]
    batches = {}
    for layout, places in layouts.items():
        for place, files in places.items():
            pack(files, tmp_path / layout / place)
        data = made(name, tmp_path / layout).dataset()
        assert data.card["layout"] == layout
        assert data.stands_for == "librispeech"
        assert len(data.need_task().classes) == classes
        assert (len(data.need("train")), len(data.need("test"))) == (train, test)
        batches[layout] = [data.need("train"), data.need("test")]
    first, *others = batches.values()
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert np.array_equal(ours.labels, theirs.labels)  # type: ignore[arg-type]
            assert torch.equal(
                ours.batch(slice(None))["spectrogram"], theirs.batch(slice(None))["spectrogram"]
            )
    assert first[0].batch([0])["spectrogram"].shape == (1, 1, 224, 224)


def test_values_are_scaled_by_the_published_pair(tmp_path: Path) -> None:
    pack(flat(packing.audiomnist, "AudioMNIST"), tmp_path)
    found = made("audiomnist", tmp_path)
    raw = found.array("spectrogram")[0].astype(np.float32)
    index = np.flatnonzero(found.array("test_index") == 0)
    part, place = ("test", index) if len(index) else ("train", None)
    if place is None:
        place = np.flatnonzero(found.array("train_index") == 0)
    scaled = found.dataset().need(part).batch(place.tolist())["spectrogram"][0]  # type: ignore[arg-type]
    np.testing.assert_allclose(scaled, (raw + 90.293) / 11.799, rtol=1e-5)


def librispeech(data_dir: Path, layout: str) -> Prepared:
    for number, subset in enumerate((*PRETRAINING, "dev-clean")):
        speakers = (84, 251) if subset == "dev-clean" else (300 + number,)
        place = f"{subset}.tar.gz" if layout == "published" else "speech/librispeech"
        pack(packing.librispeech(subset, speakers), data_dir / place)
    return made("librispeech", data_dir)


@pytest.mark.parametrize("layout", ["published", "dabs"])
def test_librispeech_pretrains_on_heads_and_tails(layout: str, tmp_path: Path) -> None:
    """Each of 15 clips has two rows; for the three long ones they differ, for the others not."""
    found = librispeech(tmp_path, layout)
    data = found.dataset()
    assert found.manifest["layout"] == layout
    assert found.array("pretraining").shape == (18, 1, 224, 224)
    pretrain = data.need("pretrain")
    assert (len(pretrain), pretrain.labels) == (30, None)
    x = pretrain.batch(slice(None))["spectrogram"]
    long = [n for n in range(15) if not torch.equal(x[2 * n], x[2 * n + 1])]
    assert long == [0, 5, 10]  # the first clip of every subset's speaker
    assert data.need_task().classes == ("84", "251")
    assert (len(data.need("train")), len(data.need("test"))) == (8, 2)


def test_the_coin_is_fair_and_a_function_of_seed_and_step() -> None:
    """Drawing rows uniformly tosses the coin: row 2n is clip n's head, row 2n + 1 its tail."""
    drawn = torch.cat([batch_indices(2000, 50, seed=3, step=step) for step in range(40)])
    again = torch.cat([batch_indices(2000, 50, seed=3, step=step) for step in range(40)])
    assert torch.equal(drawn, again)
    assert sorted(drawn.tolist()) == list(range(2000))
    first_seen = {}
    for row in drawn.tolist():
        first_seen.setdefault(row // 2, row % 2)
    assert abs(sum(first_seen.values()) - 500) < 70


def test_probes_see_the_head(tmp_path: Path) -> None:
    """A clip whose loud end does not fit is as quiet as its head."""
    contents = packing.voxceleb1()
    path = "wav/id10001/video3/00003.wav"
    contents[path] = sound(1, samples=SAMPLES + 80_000)
    pack(flat(lambda: contents, "voxceleb1"), tmp_path)
    data = made("voxceleb1", tmp_path).dataset()
    stored = data.need("test").batch([0])["spectrogram"][0] * 19.776 - 37.075
    np.testing.assert_allclose(stored, spectrograms(contents[path], "x")[0], atol=0.1)


@pytest.mark.parametrize("train", ["disjoint", "as_published"])
def test_google_speech_can_leak_as_published(train: str, tmp_path: Path) -> None:
    pack(packing.google_speech(), tmp_path / "speech_commands_v0.02.tar.gz")
    found = made("google_speech", tmp_path, options={"train": train})
    shared = set(found.array("train_index").tolist()) & set(found.array("test_index").tolist())
    assert len(shared) == (2 if train == "as_published" else 0)
    assert len(found.array("train_index")) == (6 if train == "as_published" else 3)
    assert found.manifest["options"] == {"train": train}


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("voxceleb1", "voxceleb1/iden_split.txt", r"one file iden_split\.txt"),
        ("google_speech", "google_speech/validation_list.txt", r"one file validation_list\.txt"),
        ("voxceleb1", "voxceleb1/wav/id10001/video1/00001.wav", r"listed, but not there"),
    ],
)
def test_a_missing_file_is_named(name: str, absent: str, message: str, tmp_path: Path) -> None:
    contents = flat(getattr(packing, name), name)
    del contents[absent]
    pack(contents, tmp_path / "speech")
    with pytest.raises(DataError, match=message):
        made(name, tmp_path)


def test_damaged_clips_are_fatal_or_left_out(tmp_path: Path) -> None:
    contents = flat(packing.voxceleb1, "voxceleb1")
    contents["voxceleb1/wav/id10001/video1/00001.wav"] = b"RIFF"
    contents["voxceleb1/wav/id10002/video2/00002.wav"] = sound(1)[:500]
    pack(contents, tmp_path / "speech")
    names = ["id10001/video1/00001.wav", "id10002/video2/00002.wav"]
    done, skipped = skipping("voxceleb1", tmp_path, f"{names[0]}: expected sound in")
    assert sorted(skipped) == names
    data = done.dataset()
    assert (len(data.need("train")), len(data.need("test"))) == (2, 2)


def test_a_class_that_only_the_test_part_has_is_named(tmp_path: Path) -> None:
    contents = flat(packing.voxceleb1, "voxceleb1")
    lines = contents["voxceleb1/iden_split.txt"].decode().splitlines()
    kept = [line for line in lines if "id10002" not in line or line.startswith("3")]
    contents["voxceleb1/iden_split.txt"] = packing.text(*kept)
    pack(contents, tmp_path / "speech")
    found = made("voxceleb1", tmp_path)
    with pytest.raises(DataError, match="none is there for: id10002"):
        found.dataset()
