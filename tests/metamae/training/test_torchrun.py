"""The command under torchrun: a process that is killed ends all, and others go on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metamae.training import Checkpoint
from metamae.training.callbacks import LOG
from metamae.training.resuming import read_newest
from metamae.training.run_folder import CHECKPOINT, load_method
from tests import ROOT
from tests.tiny import SIZES, as_options

SETTINGS = as_options(
    (
        *SIZES,
        *("training.batch_size=7", "training.steps=20", "training.log_every=1"),
        *("training.checkpoint_every=5", "encoder.dropout=0.1"),
    )
)
TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint")

LOST = "error: expected 2 processes that go on together"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch is built without torch.distributed and its gloo backend",
    ),
]


def command(processes: int, out: Path, *options: str) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += [*TORCHRUN, "localhost:0", "--nproc-per-node", str(processes)]
    own = ("-m", "metamae", "pretrain", "basic_motions", "--device", "cpu", "--out", str(out))
    return [*start, *own, *SETTINGS, *options]


def run(processes: int, out: Path, *options: str) -> None:
    done = subprocess.run(
        command(processes, out, *options), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def start_and_hit(out: Path, rank: int, number: int, *options: str) -> list[str]:
    """Two processes, one of which gets a signal after 7 steps; what ours print to stderr."""
    with subprocess.Popen(
        command(2, out, *options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as torchrun:
        log, end = out / LOG, time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") >= 7):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(_process(torchrun.pid, rank), number)
        _, said = torchrun.communicate(timeout=200)
    assert torchrun.returncode != 0
    return [line for line in said.splitlines() if line.startswith(("error:", "stopped"))]


def _process(parent: int, rank: int) -> int:
    """The child of torchrun that has this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            child = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            ranked = f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if child and ranked:
            return int(folder.name)
    raise AssertionError(f"expected rank {rank} among the children of {parent}")


@pytest.mark.parametrize(
    ("rank", "number", "others", "line", "kinds"),
    [
        (1, signal.SIGKILL, 1, LOST, "ddp ddp"),
        (0, signal.SIGKILL, 4, LOST, "ddp ddp"),
        (1, signal.SIGTERM, 1, "stopped by SIGTERM after step", "ddp ddp"),
        (1, signal.SIGKILL, 4, LOST, "fsdp fsdp"),
        (0, signal.SIGKILL, 1, LOST, "fsdp ddp"),
        (1, signal.SIGTERM, 3, "stopped by SIGTERM after step", "fsdp fsdp"),
    ],
)
def test_one_line_then_others_go_on_to_the_same_weights(
    rank: int, number: int, others: int, line: str, kinds: str, tmp_path: Path
) -> None:
    """Of processes that have all weights each, and of those that have shares."""
    first, then = (("--set", f"training.parallel={kind}") for kind in kinds.split())
    (told,) = start_and_hit(tmp_path / "hit", rank, number, *first)
    assert told.startswith(line)
    assert read_newest(tmp_path / "hit", "cpu").step >= 5
    run(others, tmp_path / "hit", "--resume", *then)
    run(1, tmp_path / "whole")
    found, expected = (Checkpoint.load(tmp_path / n / CHECKPOINT) for n in ("hit", "whole"))
    assert found.step == expected.step == 20
    torch.testing.assert_close(found.model, expected.model, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        dict(load_method(tmp_path / "hit" / CHECKPOINT).state_dict()), found.model
    )
    logs = [(tmp_path / name / LOG).read_text().count("\n") for name in ("hit", "whole")]
    assert logs == [20, 20]
