"""Folders of pictures and sounds."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import wavfile

from metamae import DataError
from metamae.data.description import Description
from metamae.data.formats.mel import SAMPLES, log_mel
from metamae.data.own import open_data, read_like
from metamae.data.own.pictures import make_picture
from metamae.data.own.sound import read_wave
from tests.metamae.data.own.making import make_pictures, make_sounds


def test_subfolders_are_classes_and_sizes_become_one(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pets")
    opened = open_data(root)
    dataset = opened.dataset
    assert dataset.name == "pets"
    assert dataset.need_task().classes == ("cat", "dog")
    (image,) = dataset.inputs
    assert (image.channels, image.height, image.width) == (3, 8, 8)  # type: ignore[attr-defined]
    assert opened.ids["pretrain"] == sorted(opened.ids["pretrain"])
    for name in opened.ids["test"]:
        row = opened.ids["test"].index(name)
        label = np.asarray(dataset.need("test").labels)[row]
        assert name.startswith(dataset.need_task().classes[label])
        raw = np.asarray(dataset.need("test").arrays["image"][[row]])[0]
        assert np.array_equal(raw, make_picture((root / name).read_bytes(), name, 3, (8, 8)))
    text = "\n".join(opened.remarks)
    assert "sizes from 20 x 12 to 17 x 15, shrunk and cut to the central 8 x 8" in text
    assert "subfolders are taken as classes" in text


def test_other_pictures_are_read_in_order(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pets")
    opened = open_data(root)
    description = Description.from_dict(
        json.loads(json.dumps(Description.of(opened.dataset).to_dict()))
    )
    other = make_pictures(tmp_path / "wild", classes=("dog", "eel"), each=2)
    examples = read_like(other, description)
    assert examples.ids == ["dog/0.png", "dog/1.png", "eel/0.png", "eel/1.png"]
    assert examples.partition.batch([0])["image"].shape == (1, 3, 8, 8)
    one = read_like(other / "eel" / "1.png", description)
    assert one.ids == ["1.png"]
    assert np.array_equal(one.partition.arrays["image"][0], examples.partition.arrays["image"][3])
    with pytest.raises(DataError, match="expected data of kind 'image', as the run was"):
        read_like(make_sounds(tmp_path / "tones"), description)


def test_pictures_of_one_size_stay_as_they_are(tmp_path: Path) -> None:
    for n in range(5):
        pixels = np.random.default_rng(n).integers(0, 255, (16, 24)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    opened = open_data(tmp_path)
    rows = np.asarray(opened.dataset.need("pretrain").arrays["image"][:])
    assert rows.shape == (5, 1, 16, 24)
    assert np.array_equal(rows[4, 0], pixels)
    assert opened.dataset.task is None, "a flat folder has no classes"


def test_a_file_of_labels_serves_a_flat_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_pictures(tmp_path / "pets", classes=("all",), each=8)
    names = [f"all/{n}.png" for n in range(8)]
    table = pd.DataFrame({"file": names, "breed": ["a", "b"] * 4})
    table.iloc[::-1].to_csv("breeds.csv", index=False)
    opened = open_data(root, label="breeds.csv")
    for name, label in zip(
        opened.ids["train"], np.asarray(opened.dataset.need("train").labels), strict=True
    ):
        assert label == int(name[4]) % 2
    table.iloc[:3].to_csv("breeds.csv", index=False)
    with pytest.raises(DataError, match=r"found none for 5 \(first: all/3.png\)"):
        open_data(root, label="breeds.csv")


def test_folders_of_parts_say_what_is_tested(tmp_path: Path) -> None:
    make_pictures(tmp_path / "train")
    make_pictures(tmp_path / "test", each=2)
    opened = open_data(tmp_path)
    assert all(name.startswith("test/") for name in opened.ids["test"])
    assert len(opened.ids["test"]) == 4
    assert opened.dataset.need_task().classes == ("cat", "dog")


def test_damaged_pictures_are_named_and_left_out_only_if_asked(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "pets")
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[:-30])
    (root / "dog" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/1.png.*2 such files, such as dog/2.png.*--skip-bad"):
        open_data(root)
    opened = open_data(root, skip_bad=True)
    assert len(opened.ids["pretrain"]) + len(opened.ids["test"]) == 6
    assert "2 files could not be read and are left out: cat/1.png, dog/2.png" in opened.remarks
    description = Description.of(opened.dataset)
    with pytest.raises(DataError, match="--skip-bad"):
        read_like(root, description)
    assert len(read_like(root, description, skip_bad=True).ids) == 6


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 400)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"large.png"):
        open_data(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_bytes(mode: str) -> None:
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((6, 6), 257 * 9, np.uint16)).save(file, "PNG")
    else:
        plain = Image.new("RGB", (6, 6), (9, 9, 9))
        made = plain.quantize(4) if mode == "P" else plain.convert(mode)
        made.save(file, "TIFF" if mode == "CMYK" else "PNG")
    picture = make_picture(file.getvalue(), "a", 1, (6, 6))
    assert picture.shape == (1, 6, 6)
    assert picture[0, 2, 2] == (0 if mode == "1" else 9)


def test_sounds_become_the_spectrograms_of_the_speech_sets(tmp_path: Path) -> None:
    root = make_sounds(tmp_path / "tones")
    opened = open_data(root)
    (image,) = opened.dataset.inputs
    assert (image.name, image.height, image.width) == ("spectrogram", 224, 32)
    assert 16 <= image.tokens <= 64
    assert opened.dataset.need_task().classes == ("high", "low")
    name = opened.ids["pretrain"][0]
    rate, samples = wavfile.read(root / name)
    wave = np.pad(samples / 32768, (0, SAMPLES - len(samples)))
    row = np.asarray(opened.dataset.need("pretrain").arrays["spectrogram"][[0]])[0, 0]
    whole = log_mel(wave, rate).astype(np.float16)
    assert np.array_equal(row, whole[:, :32])
    assert len(np.unique(whole[:, 32:])) == 1, "what is cut off is silence"
    description = Description.of(opened.dataset)
    examples = read_like(root, description)
    assert len(examples.ids) == 6
    tone = (8000 * np.sin(np.arange(60000))).astype(np.int16)
    wavfile.write(root / "low" / "long.wav", 8000, tone)
    other = read_like(root, description)
    assert "32 frames, as the run has them: 1 longer clips are cut" in " ".join(other.remarks)
    assert open_data(root).dataset.inputs[0].width == 96


def test_wav_needs_no_library_and_flac_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    root = make_sounds(tmp_path / "tones")
    assert len(open_data(root).ids["pretrain"]) > 0
    (root / "low" / "x.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match=r"pip install 'metamae\[data\]'"):
        open_data(root)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_samples_are_between_minus_one_and_one(kind: type) -> None:
    wave = np.array([0.0, 0.5, -0.5])
    if kind is np.uint8:
        samples = (wave * 128 + 128).astype(kind)
    elif kind is np.float32:
        samples = wave.astype(kind)
    else:
        samples = (wave * -float(np.iinfo(kind).min)).astype(kind)
    file = io.BytesIO()
    wavfile.write(file, 8000, samples)
    assert read_wave(file.getvalue(), "a.wav")[1][:3].tolist() == wave.tolist()
    with pytest.raises(DataError, match="cut short"):
        read_wave(file.getvalue()[:-3], "a.wav")
    with pytest.raises(DataError, match=r"expected sound in a.wav, got 4 bytes"):
        read_wave(b"none", "a.wav")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no files"):
        open_data(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"found 1 of .txt"):
        open_data(tmp_path)
    make_pictures(tmp_path / "a")
    make_sounds(tmp_path / "b")
    with pytest.raises(DataError, match="got 8 and 6; say which by --as image or --as audio"):
        open_data(tmp_path)
    assert open_data(tmp_path, kind="audio").dataset.inputs[0].name == "spectrogram"
