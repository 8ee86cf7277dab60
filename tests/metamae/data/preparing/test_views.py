"""Files are found by the ends of their paths, and read alike from every packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.dataset import Array
from metamae.data.formats.archives import open_bundle
from metamae.data.preparing.listing import Halves, Listing
from metamae.data.preparing.views import View, lines, save_halves, store, tables
from tests.metamae.data.making import writing
from tests.metamae.data.packing import pack

CONTENT = {
    "top/data/b.txt": b"b",
    "top/data/a/2.WAV": b"two",
    "top/data/a/1.wav": b"one",
    "top/readme.txt": b"one\r\n\n two \n",
}
KINDS = ["folder", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


def place(kind: str, folder: Path) -> Path:
    return pack(CONTENT, folder / ("folder" if kind == "folder" else f"archive.{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_packing_reads_alike(kind: str, tmp_path: Path) -> None:
    bundle = open_bundle(place(kind, tmp_path))
    view = View.tails(r"a/\d\.wav", bundle)
    assert sorted(view.members) == ["a/1.wav", "a/2.WAV"]
    read = {name: file.read() for name, file in view.walk(["a/2.WAV", "a/1.wav"])}
    assert read == {"a/1.wav": b"one", "a/2.WAV": b"two"}
    around = View.around("data/b.txt", bundle)
    assert {name: file.read() for name, file in around.walk(["readme.txt"])} == {
        "readme.txt": CONTENT["top/readme.txt"]
    }
    readme, other = tables(bundle, "readme.txt", "data/b.txt")
    assert (lines(readme), other) == (["one", "two"], b"b")


def test_several_archives_are_one_view(tmp_path: Path) -> None:
    first = open_bundle(pack({"wav/x/1.wav": b"1"}, tmp_path / "a.zip"))
    second = open_bundle(pack({"wav/y/2.wav": b"2"}, tmp_path / "b.tar.gz"))
    view = View.tails(r"[xy]/\d\.wav", first, second)
    read = {name: file.read() for name, file in view.walk(["y/2.wav", "x/1.wav"])}
    assert read == {"x/1.wav": b"1", "y/2.wav": b"2"}
    with pytest.raises(DataError, match=r"expected one file x/1\.wav, got wav/x/1\.wav in "):
        View.tails(r"[xy]/\d\.wav", first, second, first)
    with pytest.raises(DataError, match=r"expected files like z\\\.wav in .*a\.zip, found none"):
        View.tails(r"z\.wav", first)


def decode(content: bytes, name: str) -> Array:
    """One row a letter; a file that begins with `!` is damaged."""
    if content.startswith(b"!"):
        raise ValueError("it shouts")
    return np.frombuffer(content, np.uint8)


FILES = {"d/a": b"aa", "d/bad": b"!", "d/c": b"c", "d/unlisted": b"x"}


@pytest.mark.parametrize("kind", ["folder", "x.tar.gz"])
def test_unreadable_and_absent_files_are_skipped_and_counted(kind: str, tmp_path: Path) -> None:
    bundle = open_bundle(pack(FILES, tmp_path / kind))
    writer = writing(tmp_path)
    array = writer.array("x", (), np.uint8)
    view = View.tails(r"d/\w+", bundle)
    rows = store(writer, array, view, ["d/c", "d/bad", "d/gone", "d/a", "d/c"], decode)
    assert {name: last - first + 1 for name, (first, last) in rows.items()} == {"d/a": 2, "d/c": 1}
    halves = Halves(
        ("no", "yes"), Listing(["d/c", "d/bad", "d/c"], [1, 0, 1]), Listing(["d/a"], [0])
    )
    save_halves(writer, halves, rows, array)
    writer.close()
    values = np.load(tmp_path / "x.npy")
    assert [
        bytes(values[slice(*rows[name])]) + bytes([values[rows[name][1]]])
        for name in ("d/a", "d/c")
    ] == [b"aa", b"c"]
    train, test = (np.load(tmp_path / f"{part}_index.npy") for part in ("train", "test"))
    assert values[train].tolist() == [ord("c")] * 2  # named twice, stored once
    assert values[test].tolist() == [ord("a")]
    labels = np.load(tmp_path / "label.npy")
    assert (labels[train].tolist(), labels[test].tolist()) == ([1, 1], [0])
    assert writer.facts == {"classes": ["no", "yes"]}
    assert writer.skipped == [
        {"file": "d/gone", "reason": "it is listed, but not there"},
        {"file": "d/bad", "reason": "it shouts"},
    ]


def test_the_first_unreadable_file_is_fatal_by_default(tmp_path: Path) -> None:
    bundle = open_bundle(pack(FILES, tmp_path / "folder"))
    writer = writing(tmp_path, "fail")
    array = writer.array("x", (), np.uint8)
    view = View.tails(r"d/\w+", bundle)
    with pytest.raises(DataError, match=r"expected a readable d/bad: it shouts; .*--on-error skip"):
        store(writer, array, view, ["d/a", "d/bad"], decode)
    writer.close()
