"""Folders, zip and tar archives are read alike; JSON lists are streamed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from metamae import DataError
from metamae.data.sources import files
from metamae.data.sources.files import json_records, open_files
from tests.metamae.data.packing import pack

CONTENT = {
    "top/data/b.txt": b"b",
    "top/data/a/x.WAV": b"sound",
    "top/data/._a.wav": b"hidden",
    "top/readme.txt": b"one\r\n\n two \n",
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_every_packing_reads_alike(kind: str, tmp_path: Path) -> None:
    place, scratch = pack(CONTENT, tmp_path / f"archive.{kind}"), tmp_path / "scratch"
    with open_files(place, scratch) as found:
        assert sorted(found.names) == sorted(CONTENT)
        assert {name: found.read(name) for name in reversed(found.names)} == CONTENT
        assert found.lines("top/readme.txt") == ["one", "two"]
        below = found.below("data")
        assert sorted(below.names) == ["._a.wav", "a/x.WAV", "b.txt"]
        assert below.ending(".wav", ".flac") == ["a/x.WAV"]
        assert below.below("a").read("x.WAV") == b"sound"
        assert found.around("readme.txt").read("data/b.txt") == b"b"
        assert sorted(found.around("a/x.WAV").names) == ["._a.wav", "a/x.WAV", "b.txt"]
        with pytest.raises(DataError, match=r"expected a file eadme\.txt in .*, found none"):
            found.around("eadme.txt")
        assert found.below("top/data").read("b.txt") == b"b"
        with pytest.raises(DataError, match=r"expected a folder dat in .*, found none"):
            found.below("dat")
        with pytest.raises(DataError, match=r"expected a file none\.txt in "):
            found.read("none.txt")
    assert not scratch.exists() or not list(scratch.iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("left", [0.5, 0.0])
def test_a_cut_archive_is_damaged(kind: str, left: float, tmp_path: Path) -> None:
    place = pack(CONTENT, tmp_path / f"archive.{kind}")
    whole = place.read_bytes()
    cut = len(whole) // 4 if kind == "tar" else int(left * len(whole))
    place.write_bytes(whole[:cut] if left else b"<html>not found</html>")
    with pytest.raises(DataError, match=r"expected a complete archive .* fetch it again|missing"):
        read_all(place, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())


def read_all(place: Path, scratch: Path) -> list[bytes]:
    with open_files(place, scratch) as found:
        return [found.read(name) for name in CONTENT]


DOCUMENT = {
    "info": {"annotations": "not the list"},
    "images": [{"id": 1}],
    "annotations": [
        {"id": n, "text": f'say "annotations": [{n}]', "nested": {"x": [1, {"y": "]"}]}}
        for n in range(50)
    ],
    "last": [],
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lists_are_streamed(
    chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK", chunk)
    text = json.dumps(DOCUMENT, indent=indent).encode()
    for key in ("images", "annotations", "last"):
        assert list(json_records(io.BytesIO(text), key, "x.json")) == DOCUMENT[key]


def test_streaming_holds_a_part_of_the_file() -> None:
    """The first records come before the end of the file was read."""
    file = io.BytesIO(b'{"annotations": [' + b'{"id": 1}, ' * 1_000_000)
    records = json_records(file, "annotations", "x.json")
    assert [next(records)["id"] for _ in range(3)] == [1, 1, 1]
    assert file.tell() < 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list 'annotations' in x.json, found none"),
        ('{"annotations": 3}', "expected a list 'annotations' in x.json, found none"),
        ('{"annotations": [{"id": 1}, {"id"', "expected a complete list 'annotations' in x.json"),
        ('{"annotations": [{"id": 1}', "expected a complete list 'annotations' in x.json"),
    ],
)
def test_a_damaged_list_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(json_records(io.BytesIO(text.encode()), "annotations", "x.json"))
