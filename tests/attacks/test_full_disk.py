"""The disk is full at every place: one line that names the file, the old file, nothing left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metamae.cli.terminal import guarded
from metamae.config.presets import make_config
from metamae.data import load_dataset
from metamae.data.preparing.writer import RowWriter
from metamae.evaluation.feature_cache import run_features
from metamae.report.rows import read_results, write_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.pretraining import pretrain
from tests.attacks.harness import COUNTS, run_child
from tests.metamae.data.making import made, put
from tests.metamae.data.sources.test_genomics import raw_members
from tests.metamae.report.test_tables import row

LIMITED = """
import os, resource, sys
from pathlib import Path
import torch
from metamae.errors import MetamaeError
from metamae.files import write_json, write_text
from metamae.training.checkpoint import save_tensors

folder = Path(sys.argv[1])
payload = {"a": torch.zeros(20_000), "b": {"c": torch.ones(30_000)}}
writers = {
    "checkpoint.pt": lambda path: save_tensors(path, payload),
    "results.json": lambda path: write_json(path, ["x" * 100] * 2_000),
    "config.yaml": lambda path: write_text(path, "x: 1\\n" * 40_000),
}
for name, write in writers.items():
    path = folder / name
    write(path)
    before, size = path.read_bytes(), path.stat().st_size
    for limit in [0, 1, 100, 4096, *range(5000, size, max(size // 12, 1)), size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(path)
            print("FAULT written within", limit)
        except OSError as fault:
            message = str(fault)
            good = "\\n" not in message and str(path) in message
            print("refused" if good else "FAULT " + repr(message))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert path.read_bytes() == before, (name, limit)
        left = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))
        assert not left, left
"""


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """The system's limit of a file's size fails where a full disk does: in torch's C++ too."""
    done = run_child(LIMITED, str(tmp_path))
    assert done.returncode == 0, done.stderr[-1500:]
    outcomes = done.stdout.splitlines()
    assert len(outcomes) > 40
    assert set(outcomes) == {"refused"}
    COUNTS["full disk"].update(outcomes)


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_every_file_of_a_run(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full when the file is flushed, or renamed."""
    dataset = load_dataset("basic_motions")
    config = make_config("basic_motions", method="mae", overrides=["training.steps=1"])
    pretrain(config, dataset, tmp_path)
    write_results(tmp_path / "probes.json", [row()])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, call, full)
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.pt")
    actions = {
        "checkpoint.pt": lambda: checkpoint.save(tmp_path / "checkpoint.pt"),
        "probes.json": lambda: write_results(tmp_path / "probes.json", [row(seed=2)]),
        "features-basic_motions.pt": lambda: run_features(tmp_path, dataset),
    }
    for name, action in actions.items():
        with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '.*{name}'$"):
            action()
        COUNTS["full disk"]["refused"] += 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert read_results(tmp_path / "probes.json") == [row()]


def failing_writes(after: int) -> Iterator[bool]:
    for _ in range(after):
        yield False
    while True:
        yield True


@pytest.mark.parametrize("after", [0, 1, 7, 40])
def test_a_preparation(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it stays, and what was there does; with or without skipping files."""
    put(tmp_path / "genomics_ood.zip", raw_members())
    manifest = made("genomics", tmp_path).manifest
    fails, extend = failing_writes(after), RowWriter.extend

    def write(self: RowWriter, rows: Any) -> None:
        extend(self, rows)
        if next(fails):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    monkeypatch.setattr(RowWriter, "extend", write)

    def again() -> int:
        made("genomics", tmp_path, again=True, on_error="skip")
        return 0

    assert guarded(again) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["genomics"]
    assert made("genomics", tmp_path).manifest == manifest
    COUNTS["full disk"]["refused"] += 1


PREPARE = """
import resource, sys
from pathlib import Path
from metamae.data.preparing.prepare import prepare
from metamae.data.sources import get_source
source, folder = get_source("genomics"), Path(sys.argv[1])
prepare(source, folder, partial=True)
for limit in [0, 64, 128, 500, 2000, 5000]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        prepare(source, folder, again=True, on_error="skip", partial=True)
        print("FAULT written within", limit)
    except OSError as fault:
        print("refused" if "prepared" in str(fault) else "FAULT " + repr(fault))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert [path.name for path in (folder / "prepared").iterdir()] == ["genomics"]
"""


def test_a_prepared_set_that_may_not_grow(tmp_path: Path) -> None:
    put(tmp_path / "genomics_ood.zip", raw_members())
    done = run_child(PREPARE, str(tmp_path))
    assert done.returncode == 0, done.stderr[-1500:]
    assert set(done.stdout.splitlines()) == {"refused"}
    COUNTS["full disk"].update(done.stdout.splitlines())


def test_other_faults_of_torch_keep_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="something else"):
        torch_save(tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def torch_save(path: Path) -> None:
    from metamae.training.checkpoint import save_tensors

    save_tensors(path, {})
