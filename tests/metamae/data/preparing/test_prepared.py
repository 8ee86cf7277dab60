"""The prepared form: whole or absent, checked at every opening, damage and leftovers named."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metamae import ConfigError, DataError, load_dataset
from metamae.cli import data as commands
from metamae.data.dataset import Selected
from metamae.data.formats.libraries import need_module
from metamae.data.preparing import prepare
from metamae.data.preparing.prepared import Prepared
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.data.sources import SOURCES, get_source
from metamae.errors import MissingLibraryError
from tests.metamae.data.formats.test_tables import higgs_line, higgs_tables
from tests.metamae.data.making import made, put, writing
from tests.metamae.data.sources.test_pamap2 import archive


def higgs(data_dir: Path, rows: int = 200) -> Path:
    lines = "".join(higgs_line(i % 2, i) for i in range(rows))
    return put(data_dir / "HIGGS.csv.gz", lines.encode())


def higgs_made(data_dir: Path) -> Prepared:
    higgs(data_dir)
    return made("higgs", data_dir)


def command(*words: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(dest="command"))
    console = Console(record=True, width=200, force_terminal=False, file=io.StringIO())
    code = commands.run(parser.parse_args(["data", *words]), console)
    return code, console.export_text()


def described(path: Path) -> dict[str, Any]:
    """What a manifest says of one raw file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"path": str(path), "files": 1, "bytes": path.stat().st_size, "sha256": digest}


def test_a_manifest_names_every_raw_file(tmp_path: Path) -> None:
    tables = higgs_tables(tmp_path / "dabs")
    sources = made("higgs", tmp_path / "dabs").manifest["sources"]
    assert sources == {role: described(path) for role, path in tables.items()}
    archive(tmp_path / "PAMAP2_Dataset")
    folder = made("pamap2", tmp_path).manifest["sources"]["recordings"]
    files = sorted(p for p in (tmp_path / "PAMAP2_Dataset").rglob("*") if p.is_file())
    assert (folder["files"], folder["bytes"]) == (11, sum(p.stat().st_size for p in files))
    lines = (
        f"{p.relative_to(tmp_path / 'PAMAP2_Dataset').as_posix()}\0{described(p)['sha256']}\n"
        for p in files
    )
    assert folder["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_others_may_read_a_prepared_set(tmp_path: Path) -> None:
    """The temporary folder it is made in is open to its owner alone."""
    assert higgs_made(tmp_path).folder.stat().st_mode & 0o777 == 0o755


def test_a_manifest_says_where_everything_came_from(tmp_path: Path) -> None:
    path = higgs(tmp_path)
    done = made("higgs", tmp_path)
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["sources"] == {"all": described(path)}
    assert manifest["arrays"]["rows"]["shape"] == [200, 28]
    assert manifest["skipped"] == []
    assert done.verify() == []
    data = load_dataset("higgs", data_dir=tmp_path)
    assert data.card["layout"] == "published"
    assert isinstance(data.need("train").arrays["row"], Selected)
    assert isinstance(data.need("train").arrays["row"].array, np.memmap)


def test_it_is_prepared_once_and_anew_when_asked(tmp_path: Path) -> None:
    path = higgs(tmp_path)
    first = made("higgs", tmp_path)
    path.unlink()
    assert made("higgs", tmp_path).manifest == first.manifest
    with pytest.raises(DataError, match="expected the raw files of 'higgs', missing"):
        made("higgs", tmp_path, again=True)
    assert made("higgs", tmp_path).verify() == []
    higgs(tmp_path, 300)
    assert len(made("higgs", tmp_path, again=True).dataset().need("pretrain")) == 243


@pytest.mark.parametrize("moment", ["prepare", "_describe_sources"])
def test_a_preparation_that_dies_leaves_nothing(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    higgs(tmp_path)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if moment == "prepare":
        monkeypatch.setattr(RowWriter, "extend", die)
    else:
        monkeypatch.setattr(prepare, moment, die)
    with pytest.raises(KeyboardInterrupt):
        made("higgs", tmp_path)
    assert list((tmp_path / "prepared").iterdir()) == []
    with pytest.raises(DataError, match="run: metamae data prepare higgs"):
        load_dataset("higgs", data_dir=tmp_path)


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    higgs(tmp_path)
    (tmp_path / "prepared" / ".higgs.abc").mkdir(parents=True)
    made("higgs", tmp_path)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == ["higgs"]


@pytest.mark.parametrize("kind", ["short", "missing", "no manifest", "format", "cut manifest"])
def test_a_damaged_prepared_set_is_found_at_opening(kind: str, tmp_path: Path) -> None:
    folder = higgs_made(tmp_path).folder
    path = folder / ("rows.npy" if kind in ("short", "missing") else "manifest.json")
    content = path.read_bytes()
    path.unlink()
    if kind == "format":
        path.write_text(json.dumps(json.loads(content) | {"format": 0}))
    elif kind in ("short", "cut manifest"):
        path.write_bytes(content[: -1 if kind == "short" else 50])
    with pytest.raises(DataError, match=r"got a damaged or older one.*--again"):
        load_dataset("higgs", data_dir=tmp_path)
    assert "damaged" in command("list", "--data-dir", str(tmp_path))[1]


def test_changed_bytes_are_found_by_checksums(tmp_path: Path) -> None:
    path = higgs_made(tmp_path).folder / "rows.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, text = command("check", "higgs", "--data-dir", str(tmp_path))
    assert (code, "sizes agree" in text) == (0, True)
    code, text = command("check", "higgs", "--data-dir", str(tmp_path), "--verify")
    assert (code, "damaged arrays: rows" in text) == (1, True)


def test_other_options_ask_for_again(tmp_path: Path) -> None:
    raw = archive(tmp_path / "PAMAP2_Dataset.zip")
    made("pamap2", tmp_path)
    raw.unlink()
    with pytest.raises(ConfigError, match=r"labels=all, .*--again"):
        made("pamap2", tmp_path, options={"labels": "dabs"})
    with pytest.raises(ConfigError, match=r"did you mean 'labels'\?"):
        made("pamap2", tmp_path, options={"label": "dabs"})
    with pytest.raises(ConfigError, match="option labels of 'pamap2' among all, dabs"):
        made("pamap2", tmp_path, options={"labels": "d"})


def test_check_says_what_is_missing_and_where_it_goes(tmp_path: Path) -> None:
    code, text = command("check", "higgs", "--data-dir", str(tmp_path))
    assert code == 1
    assert f"missing {tmp_path / 'HIGGS.csv.gz'}" in text
    assert f"missing {tmp_path / 'particle_physics/higgsTransfer.csv'}" in text
    path = put(tmp_path / "higgs" / "HIGGS.csv.gz", b"")
    code, text = command("check", "higgs", "--data-dir", str(tmp_path))
    assert (code, f"found   {path}" in text, "cannot be read: " in text) == (1, True, True)
    path = higgs(tmp_path / "higgs")
    code, text = command("check", "higgs", "--data-dir", str(tmp_path), "--partial")
    assert (code, f"found   {path}" in text, "not prepared yet; run" in text) == (0, True, True)


def test_prepare_all_takes_what_is_there_and_counts_failures(tmp_path: Path) -> None:
    higgs(tmp_path)
    put(tmp_path / "PAMAP2_Dataset.zip", b"no archive")
    code, text = command("prepare", "all", "--partial", "--data-dir", str(tmp_path))
    assert code == 1
    assert "prepared in" in text
    assert "failed pamap2" in text
    assert "left out eurosat" in text
    assert "not prepared: pamap2" in text
    assert (tmp_path / "prepared" / "higgs").is_dir()


def test_the_list_names_every_set() -> None:
    code, text = command("list")
    assert code == 0
    assert all(name in text for name in SOURCES)
    for name in SOURCES:
        source = get_source(name)
        assert (source.name, source.pretrained_on in SOURCES) == (name, True)
        assert source.specify(())
        assert source.layouts


def test_a_missing_library_names_the_extra() -> None:
    with pytest.raises(MissingLibraryError, match=r"pip install 'metamae\[data\]'"):
        need_module("metamae_needs_no_such_library")


def test_an_unreadable_file_stops_or_is_named_and_counted(tmp_path: Path) -> None:
    def read(writer: Writer) -> None:
        rows = writer.array("x", (), np.int64)
        for number in range(4):
            with writer.reading(f"file {number}"):
                if number == 2:
                    raise RuntimeError("bad magic\nnumber")
                rows.append(number)

    expected = "expected a readable file 2: bad magic number; .*skip"
    with writing(tmp_path, "fail") as writer, pytest.raises(DataError, match=expected):
        read(writer)
    with writing(tmp_path) as writer:
        read(writer)
        assert writer.skipped == [{"file": "file 2", "reason": "bad magic number"}]
        writer.close()
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 3]


@pytest.mark.parametrize("fault", [MissingLibraryError("x"), OSError(28, "full"), MemoryError()])
def test_a_full_disk_or_missing_library_is_no_damage(fault: Exception, tmp_path: Path) -> None:
    writer = writing(tmp_path)
    with pytest.raises(type(fault)), writer.reading("file"):
        raise fault
    assert writer.skipped == []


def test_rows_are_checked_and_counted(tmp_path: Path) -> None:
    rows = RowWriter(tmp_path / "x.npy", (2,), np.uint8)
    for _ in range(3):
        rows.append([1, 255])
    with pytest.raises(DataError, match=r"rows of shape \(2,\) in x, got \(3,\)"):
        rows.append([1, 2, 3])
    with pytest.raises(DataError, match="fit uint8, got 1 to 256"):
        rows.append([1, 256])
    rows.close()
    assert np.load(tmp_path / "x.npy").tolist() == [[1, 255]] * 3


def test_a_partition_without_rows_is_refused(tmp_path: Path) -> None:
    expected = "expected examples for the pretrain partition, found none"
    with writing(tmp_path) as writer:
        writer.array("x", (), np.uint8)
        writer.partition("pretrain", {"x": "x"})
        with pytest.raises(DataError, match=expected):
            writer.close()


def test_the_order_is_that_of_pandas() -> None:
    """``DataFrame({"a": range(12)}).sample(frac=1, random_state=42).a``, of pandas 2.2 and 3.1."""
    assert shuffled(12).tolist() == [10, 9, 0, 8, 5, 2, 1, 11, 4, 7, 3, 6]
    train, test = ninety_ten(np.arange(29))
    assert (len(train), test.tolist()) == (27, [27, 28])


def test_a_selection_reads_by_place() -> None:
    chosen = Selected(np.arange(10) * 2, np.array([7, 0, 3]))
    assert len(chosen) == 3
    assert chosen[[0, 2]].tolist() == [14, 6]
    assert chosen[:].tolist() == [14, 0, 6]
