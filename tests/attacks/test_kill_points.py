"""Runs that are killed at random moments end, when they are run again, with the same bits."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from metamae.report.rows import Result, read_results
from metamae.training.checkpoint import Checkpoint
from tests.attacks.running import SETTINGS, TINY, Command, equal_bits, sample, tell

STEPS = 24
PRETRAIN = (
    *("pretrain", "basic_motions", "--out", "run", *SETTINGS),
    *("--set", f"training.steps={STEPS}", "--set", "training.checkpoint_every=5"),
)
PROBE = ("probe", "run", "--protocol", "published", "knn", "few-1", "few-5")
SWEEP = ("sweep", "small.yaml", "--out", "out")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
POINTS = [(s, random.Random(n).random()) for n in range(12) for s in SIGNALS]
"""Signal, and when it comes as a share of the time that the whole takes: 24 of each command."""


def whole(folder: Path, *commands: tuple[str, ...]) -> float:
    """Run commands to their end; seconds that the last one took."""
    for arguments in commands:
        start = time.monotonic()
        command = Command(*arguments, folder=folder)
        assert command.wait() == 0, command.output
    return time.monotonic() - start


def cut(arguments: tuple[str, ...], folder: Path, number: int, share: float, total: float) -> str:
    """Run a command, end it at a moment, and return what came of it."""
    command = Command(*arguments, folder=folder)
    time.sleep(share * total)
    command.kill(number)
    code = command.wait()
    assert code in (0, -number, 128 + number), (code, command.output)
    assert "Traceback" not in command.output
    if number == signal.SIGTERM and code == 128 + number:
        assert "stopped" in command.output.splitlines()[-1]
    return command.output


def state(run: Path) -> Any:
    done = Checkpoint.load(run / "checkpoint.pt")
    return [done.step, done.model, done.optimiser, done.history, done.data]


def numbers(path: Path) -> list[Result]:
    """Rows without what a clock says."""
    rows = [replace(row, pretrain_seconds=0.0, probe_seconds=0.0) for row in read_results(path)]
    return sorted(rows, key=lambda row: row.key)


def test_pretraining(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    total, counts = whole(tmp_path / "whole", PRETRAIN), Counter[str]()
    expected = state(tmp_path / "whole" / "run")
    for n, (number, share) in enumerate(sample(POINTS, 2, request)):
        folder = tmp_path / str(n)
        folder.mkdir()
        said = cut(PRETRAIN, folder, number, share, total)
        claim = re.search(r"after step (\d+) of \d+, which is saved in", said)
        if claim:
            reached = Checkpoint.load(folder / "run" / "checkpoint.pt").step
            assert reached == int(claim[1])
        elif "nothing was saved" in said:
            assert not (folder / "run" / "checkpoint.pt").exists()
        again = Command(*PRETRAIN, "--resume", folder=folder)
        assert again.wait() == 0, again.output
        assert equal_bits(state(folder / "run"), expected)
        assert not list((folder / "run").glob(".lock*"))
        counts["saved where it stopped" if claim else "resumed"] += 1
    tell("pretrain killed", counts, capsys)


@pytest.mark.slow
def test_probing(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    total = whole(tmp_path, PRETRAIN, PROBE)
    run, counts = tmp_path / "run", Counter[str]()
    expected = numbers(run / "probes.json")
    for number, share in sample(POINTS, 2, request):
        for path in (run / "probes.json", run / "features-basic_motions.pt"):
            path.unlink(missing_ok=True)
        cut(PROBE, tmp_path, number, share, total)
        again = Command(*PROBE, folder=tmp_path)
        assert again.wait() == 0, again.output
        assert numbers(run / "probes.json") == expected
        counts["equal rows"] += 1
    tell("probe killed", counts, capsys)


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_sweeping(
    workers: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Workers are processes of their own, and take seconds to start: fewer points."""
    spec = {
        "datasets": ["basic_motions"],
        "methods": ["random", "mae", "metamae"],
        "seeds": 1,
        "protocols": ["published", "knn"],
        "overrides": [*TINY, "training.steps=9", "training.checkpoint_every=4"],
    }
    if workers == "2" and not request.config.getoption("--all", default=False):
        pytest.skip("one of a sample: add --all to run it")
    sweep = (*SWEEP, "--workers", workers)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "small.yaml").write_text(yaml.safe_dump(spec))
    total, counts = whole(tmp_path / "whole", sweep), Counter[str]()
    expected = numbers(tmp_path / "whole" / "out" / "results.json")
    assert len(expected) == 6
    points = POINTS if workers == "1" else POINTS[:4]
    for n, (number, share) in enumerate(sample(points, 1, request)):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "small.yaml").write_text(yaml.safe_dump(spec))
        cut(sweep, folder, number, share, total)
        again = Command(*sweep, folder=folder)
        assert again.wait() == 0, again.output
        assert numbers(folder / "out" / "results.json") == expected
        counts["equal rows"] += 1
    tell(f"sweep with {workers} worker(s) killed", counts, capsys)
