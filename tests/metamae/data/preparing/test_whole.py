"""Fewer examples than published are refused, or kept in the manifest; parts that are not asked for
may be missing; `check` opens what it calls complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metamae import ConfigError, DataError, load_dataset
from metamae.data.preparing.layouts import Content, forms, similar_files
from metamae.data.preparing.trial import try_out
from metamae.data.sources import SOURCES, get_source
from tests.metamae.data import packing
from tests.metamae.data.formats.test_tables import higgs_tables
from tests.metamae.data.making import made, put
from tests.metamae.data.packing import old_table, pack
from tests.metamae.data.preparing.test_prepared import command, higgs


def test_few_rows_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    higgs(tmp_path, 120)
    with pytest.raises(DataError, match="found 98 of 8,910,000 rows of pretrain, 11 of 990,000"):
        made("higgs", tmp_path, partial=False)
    assert list((tmp_path / "prepared").iterdir()) == []
    done = made("higgs", tmp_path)
    kept = json.loads((done.folder / "manifest.json").read_text())["partial"]
    assert kept["rows of test"] == [1, 110_000]
    assert load_dataset("higgs", data_dir=tmp_path).card["partial"] == kept
    code, text = command("check", "higgs", "--data-dir", str(tmp_path))
    assert (code, "partial: 98 of 8,910,000 rows of pretrain" in text) == (0, True)


def test_as_many_rows_as_published_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unreadable file that is left out by name is not missing a second time."""
    source = get_source("higgs")
    monkeypatch.setitem(source.totals, "pretrain", 162)  # type: ignore[index]
    monkeypatch.setitem(source.totals, "train", 18)  # type: ignore[index]
    monkeypatch.setitem(source.totals, "test", 2)  # type: ignore[index]
    higgs(tmp_path, 200)
    assert made("higgs", tmp_path, partial=False).manifest["partial"] == {}


def test_files_are_counted_before_any_is_read(tmp_path: Path) -> None:
    pack(packing.audiomnist(), tmp_path / "AudioMNIST")
    with pytest.raises(DataError, match="found 20 of 30,000 files of clips; get the rest"):
        made("audiomnist", tmp_path, partial=False)
    code, text = command("check", "audiomnist", "--data-dir", str(tmp_path))
    assert code == 1
    assert "incomplete: 20 of 30,000 files of clips, 10 of 24,000 rows of train" in text


def test_check_opens_what_it_calls_complete(tmp_path: Path) -> None:
    for name in ("labeled", "unlabeled"):
        put(tmp_path / f"semiconductors/{name}.pkl", old_table({"pixel": [1], "failureType": [2]}))
    code, text = command("check", "wafermap", "--data-dir", str(tmp_path))
    assert code == 1
    assert "layout dabs: complete" in text
    assert "cannot be read: expected columns failureType and waferMap (or pixels)" in text


def test_a_trial_ends_when_its_time_is_up(tmp_path: Path) -> None:
    higgs(tmp_path, 2000)
    source = get_source("higgs")
    layout, paths = source.locate(tmp_path)
    assert try_out(source, layout, paths, seconds=-1) is None
    whole = try_out(source, layout, paths)
    assert whole is not None
    assert whole["rows of test"] == (20, 110_000)


@pytest.mark.parametrize("only", ["pretrain", "probe"])
def test_files_for_one_part_are_enough_for_it(only: str, tmp_path: Path) -> None:
    tables = higgs_tables(tmp_path)
    tables["transfer" if only == "pretrain" else "pretrain"].unlink()
    with pytest.raises(DataError, match=f"what is there is enough for --only {only}"):
        made("higgs", tmp_path)
    done = made("higgs", tmp_path, only=only)
    data = done.dataset()
    assert done.manifest["only"] == only
    assert [data.pretrain is None, data.train is None] == [only == "probe", only == "pretrain"]
    other = "probe" if only == "pretrain" else "pretrain"
    with pytest.raises(ConfigError, match=f"made with --only {only}; add --again"):
        made("higgs", tmp_path, only=other)
    higgs_tables(tmp_path)
    assert made("higgs", tmp_path, again=True).dataset().need("pretrain")


def test_a_set_in_one_piece_has_no_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected all of 'cub', .* comes in one piece"):
        made("cub", tmp_path, only="probe")


@pytest.mark.parametrize("name", SOURCES)
def test_contents_and_totals_are_of_roles_and_parts_there_are(name: str) -> None:
    source = get_source(name)
    assert set(source.contents) <= set(source.all_roles())
    assert {role for roles in source.enough_for.values() for role in roles} <= {*source.all_roles()}
    assert source.totals or name in ("pamap2", "vqa"), "published numbers of rows are known"


def test_names_and_contents() -> None:
    assert "x.tgz" in list(forms(("x.zip",)))
    assert "a/b" in list(forms(("a/b.tar.gz",)))
    content = Content(r"Protocol/subject10\d\.dat")
    assert content.fits("Protocol/subject101.dat")
    assert not content.fits("MyProtocol/subject101.dat")


def test_similar_names_are_seen_a_folder_deeper(tmp_path: Path) -> None:
    for name in ("higgs_v2.rar", "more/HIGGS-csv.7z", "photo.jpg", "prepared/higgs"):
        put(tmp_path / name, b"")
    found = similar_files(tmp_path, "higgs", ["HIGGS.csv.gz", "higgs.zip"])
    assert found == ["higgs_v2.rar", "more/HIGGS-csv.7z"]
    with pytest.raises(DataError, match=r"HIGGS\.csv\.gz \(or higgs\.zip\) \(found higgs_v2\.rar"):
        made("higgs", tmp_path)
