"""The errand for a GPU, in miniature on a CPU: pieces, limits, what is skipped, what is left."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests import ROOT
from tests.benchmarks.loading import load_program

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def errand() -> ModuleType:
    return load_program("gpu_errand")


@pytest.mark.slow
def test_two_pieces_run_and_leave_rows_and_a_log(
    errand: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the committed rows are left as they are."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(errand, "ROOT", ROOT)
    before = {path.name: path.read_bytes() for path in RESULTS.iterdir() if path.is_file()}
    assert errand.main(["--tiny", "--piece", "training", "--piece", "tests"]) == 0
    assert {path.name: path.read_bytes() for path in RESULTS.iterdir() if path.is_file()} == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == ["tests: done", "training: done"]
    out = tmp_path / "out"
    assert "skipped" in (out / "tests.log").read_text()
    rows = json.loads((out / "results" / "training-cpu.json").read_text())["rows"]
    assert [(row["setting"], row["method"]) for row in rows] == [
        ("basic_motions", "mae"),
        ("basic_motions", "metamae"),
    ]
    assert all(row["ratio"] > 0 and row["revision"] for row in rows)
    state = json.loads((out / errand.STATE).read_text())
    assert all(state[name]["ok"] for name in ("tests", "training"))


def test_a_piece_that_takes_too_long_is_stopped(errand: ModuleType, tmp_path: Path) -> None:
    """As by Ctrl-C first, on which training saves what it reached."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('saved'), sys.exit()))\n"
        "print('started', flush=True); time.sleep(60)"
    )
    ok, seconds = errand.run(["-c", code], 3.0, tmp_path / "log")
    assert not ok
    assert seconds < 30
    assert "started\nsaved\nstopped after 3 s" in (tmp_path / "log").read_text()


def test_what_is_committed_for_this_revision_and_hardware_is_skipped(errand: ModuleType) -> None:
    piece, here = errand.pieces()[0], {"revision": "abc", "hardware": "H100"}
    assert not errand.is_done(piece, {}, here)
    assert errand.is_done(piece, {piece.name: {"ok": True, **here}}, here)
    assert not errand.is_done(piece, {piece.name: {"ok": False, **here}}, here)
    assert not errand.is_done(piece, {piece.name: {"ok": True, **here, "revision": "d"}}, here)
    assert not errand.is_done(piece, {piece.name: {"ok": True, **here, "hardware": "x"}}, here)


def test_pieces_come_in_order_of_worth(errand: ModuleType) -> None:
    names = [piece.name for piece in errand.pieces()]
    assert names[0] == "tests"
    assert names.index("overhead-eager") < names.index("training") < names.index("adapter")
    assert names[-1] == "paper-genomes-metamae"
    assert len(set(names)) == len(names)


def test_an_unknown_piece_is_named(errand: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        errand.main(["--tiny", "--piece", "overheads"])
    assert "got overheads" in capsys.readouterr().err
