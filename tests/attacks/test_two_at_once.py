"""Two at work on one folder: the second one is told who is there, and leaves it alone."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from metamae.report.rows import read_results
from metamae.training.checkpoint import Checkpoint
from tests.attacks.running import SETTINGS, TINY, Command, sample, tell

LONG = ("--set", "training.steps=2000", "--set", "training.checkpoint_every=50")
SHORT = ("--set", "training.steps=3")
PRETRAIN = ("pretrain", "basic_motions", "--out", "run", *SETTINGS)
SWEEP = ("sweep", "small.yaml", "--out", "out")


def refused(second: Command, first: Command) -> None:
    """Exit code 2, and one line that names the holder."""
    assert second.wait() == 2, second.output
    (line,) = [text for text in second.output.splitlines() if text.startswith("error: ")]
    assert second.output.strip().splitlines()[-1] == line
    assert f"process {first.process.pid} on " in line
    assert re.search(r"\(metamae (pretrain|sweep|probe) .*, since \d{4}-\d\d-\d\d ", line)
    assert "choose another output folder" in line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = {
        "datasets": ["basic_motions"],
        "methods": ["mae", "metamae"],
        "seeds": 1,
        "protocols": ["knn"],
        "overrides": [*TINY, "training.steps=300"],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


@pytest.mark.parametrize(
    ("first", "lock", "second"),
    [
        ((*PRETRAIN, *LONG), "run/.lock.json", (*PRETRAIN, *SHORT)),
        ((*PRETRAIN, *LONG), "run/.lock.json", (*PRETRAIN, *SHORT, "--resume")),
        (SWEEP, "out/.lock.json", SWEEP),
        (SWEEP, "out/.lock.json", (*SWEEP, "--workers", "2")),
        ((*PRETRAIN, *LONG), "run/checkpoint.pt", ("probe", "run")),
    ],
)
def test_the_second_is_refused(
    folder: Path, first: tuple[str, ...], lock: str, second: tuple[str, ...]
) -> None:
    holder = Command(*first, folder=folder)
    holder.wait_for(folder / lock)
    refused(Command(*second, folder=folder), holder)
    holder.kill(signal.SIGTERM)
    assert holder.wait() in (0, 143)
    assert not list(folder.rglob(".lock*"))


def test_a_killed_holder_is_no_holder(folder: Path) -> None:
    """What it left of its lock is taken over."""
    holder = Command(*PRETRAIN, *LONG, folder=folder)
    holder.wait_for(folder / "run" / "checkpoint.pt")
    holder.kill(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert (folder / "run" / ".lock.json").exists()
    done = Checkpoint.load(folder / "run" / "checkpoint.pt").step
    more = ("--set", f"training.steps={done + 2}", "--set", "training.checkpoint_every=50")
    again = Command(*PRETRAIN, *more, "--resume", folder=folder)
    assert again.wait() == 0, again.output
    assert not list(folder.rglob(".lock*"))


def test_many_at_once_lose_nothing(
    folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probes of different protocols, started together: whatever ended with 0 has its row."""
    start = Command(*PRETRAIN, *SHORT, folder=folder)
    assert start.wait() == 0, start.output
    counts: Counter[str] = Counter()
    for _ in sample(range(6), 1, request):
        (folder / "run" / "probes.json").unlink(missing_ok=True)
        protocols = ("knn", "few-1", "few-2", "tuned")
        commands = [Command("probe", "run", "--protocol", p, folder=folder) for p in protocols]
        codes = [command.wait() for command in commands]
        assert set(codes) <= {0, 2}
        rows = {row.protocol for row in read_results(folder / "run" / "probes.json")}
        assert rows == {p for p, code in zip(protocols, codes, strict=True) if code == 0}
        counts["kept"] += codes.count(0)
        counts["refused"] += codes.count(2)
        time.sleep(0.01)
    tell("probes at once", counts, capsys)
