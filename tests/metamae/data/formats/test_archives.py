"""Raw files are found and read alike in folders, zips, tars and alone; damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from metamae import DataError
from metamae.data.formats.archives import intact, matches, open_bundle
from tests.metamae.data.making import put

MEMBERS = {"set/b/2.txt": b"two", "set/a/1.txt": b"one", "set/a/3.dat": b"three"}


@pytest.mark.parametrize("name", ["files", "files.zip", "files.tar.gz"])
def test_members_are_the_same_however_they_are_packed(name: str, tmp_path: Path) -> None:
    bundle = open_bundle(put(tmp_path / name, MEMBERS))
    assert bundle.names() == sorted(MEMBERS)
    assert bundle.match("a/*") == ["set/a/1.txt", "set/a/3.dat"]
    assert bundle.one("1.txt") == "set/a/1.txt"
    with bundle.open("set/a/3.dat") as file:
        assert file.read() == b"three"
    found = {name: file.read() for name, file in bundle.walk("*.txt")}
    assert found == {name: MEMBERS[name] for name in MEMBERS if name.endswith(".txt")}
    with pytest.raises(DataError, match=r"expected one file \*.txt in .*, found 2"):
        bundle.one("*.txt")
    with pytest.raises(DataError, match=r"expected one file x.csv in .*, found none"):
        bundle.one("x.csv")


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_single_file_is_unpacked_while_reading(name: str, tmp_path: Path) -> None:
    bundle = open_bundle(put(tmp_path / name, b"1,2\n" * 9))
    assert bundle.names() == ["table.csv"]
    assert [file.read() for _, file in bundle.walk("*")] == [b"1,2\n" * 9]


def test_forks_and_hidden_files_are_no_members(tmp_path: Path) -> None:
    more = {"__MACOSX/set/._1.txt": b"", "set/._1.txt": b"", "set/1.txt": b"x"}
    assert open_bundle(put(tmp_path / "a.zip", more)).names() == ["set/1.txt"]
    assert open_bundle(put(tmp_path / "a.tar.gz", more)).names() == ["set/1.txt"]
    assert open_bundle(put(tmp_path / "a", {".1.txt": b"", "1.txt": b""})).names() == ["1.txt"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.csv.gz"])
def test_a_half_archive_is_named(name: str, tmp_path: Path) -> None:
    """A download that broke off; every byte counts, so it ends far into the content."""
    content = bytes(range(256)) * 400
    path = put(tmp_path / name, content if name.endswith("csv.gz") else {"a.txt": content})
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"damaged one .*fetch it again") as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def read_all(path: Path) -> None:
    with intact(path):
        for _, file in open_bundle(path).walk("*"):
            file.read()


def test_a_pattern_matches_whole_parts() -> None:
    assert matches("x/Protocol/s1.dat", "Protocol/s*.dat")
    assert not matches("x/OldProtocol/s1.dat", "Protocol/s*.dat")
    assert not matches("s1.dat", "Protocol/s*.dat")
