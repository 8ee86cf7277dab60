"""The guides to the full data sets name every file that a reader accepts, and show what is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metamae.data.sources import SOURCES, get_source
from tests import ROOT
from tests.metamae.data import packing
from tests.metamae.data.formats.test_tables import higgs_line
from tests.metamae.data.making import put
from tests.metamae.data.packing import pack
from tests.metamae.data.preparing.test_prepared import command

DATA, MEDIA = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("data", "media"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_set_and_every_published_name_are_on_a_page(name: str) -> None:
    source, pages = get_source(name), DATA + MEDIA
    assert re.search(rf"^\| .*`{name}`", pages, re.MULTILINE)
    published = [layout for layout in source.layouts if layout.name.startswith("published")]
    for layout in published:
        for role in layout.paths:
            for file in layout.names(role):
                assert file.rpartition("/")[2] in pages, file


def test_published_numbers_are_those_that_are_checked() -> None:
    for name in ("scop", "secondary_structure", "stability", "fluorescence"):
        train, test = get_source(name).totals.values()
        assert f"| `{name}` | {train:,} and {test:,} |" in DATA
    wafers = get_source("wafermap").totals
    assert f"{wafers['unlabelled_images']:,} without a label, {wafers['images']:,} with" in DATA


def blocks(page: str) -> list[str]:
    return [
        re.sub(r"^ {3}", "", block, flags=re.MULTILINE) if block.startswith("   ") else block
        for block in re.findall(r"```text\n(.*?) *```", page, re.DOTALL)
    ]


def test_what_check_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(higgs_line(i % 2, i) for i in range(120)).encode()
    put(Path("D/higgs.zip"), {"HIGGS.csv": lines})
    pack(packing.librispeech("dev-clean"), Path("D/dev-clean.tar.gz"))
    pack(packing.cub(), Path("D/birds.tgz"))
    pack(packing.audiomnist(), Path("E/D/AudioMNIST"))
    folder, whole = blocks(DATA)
    assert command("check", "D")[1] == folder
    said = command("check", "higgs", "--data-dir", "D")[1].splitlines()
    assert said[:3] == whole.splitlines()[:3]  # of the whole file it is as below
    monkeypatch.setattr("metamae.cli.data_check.try_out", lambda *_, **__: None)
    assert command("check", "higgs", "--data-dir", "D") == (0, whole)
    monkeypatch.undo()


def test_what_check_prints_of_an_incomplete_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    pack(packing.audiomnist(), Path("D/AudioMNIST"))
    (said,) = blocks(MEDIA)
    assert command("check", "audiomnist", "--data-dir", "D") == (1, said)
