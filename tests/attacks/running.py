"""Commands in processes of their own that can be killed, and counts of what came of attacks."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from tests.tiny import SIZES, as_options

Item = TypeVar("Item")
TINY = (*SIZES, "training.batch_size=20", "training.log_every=2", "probe.epochs=3")
SETTINGS = tuple(as_options(TINY))

# Forked from one process that has imported everything: a start takes no seconds of its own.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.attacks.running", "metamae.cli.main"])


def _run(arguments: Sequence[str], folder: str, log: str) -> None:
    from metamae.cli.main import main

    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["metamae", *arguments]
    torch.set_num_threads(1)
    code = main(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Command:
    """``metamae ...`` in a process of its own."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        self.process: BaseProcess = _context.Process(
            target=_run, args=(arguments, str(folder), str(self.log))
        )
        self.start = time.monotonic()
        self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; of a killed one, minus the signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"no end after {seconds} s:\n{self.output}"
        return self.process.exitcode

    def wait_for(self, path: Path, seconds: float = 60) -> None:
        """Until a file is there."""
        while not path.exists():
            assert self.process.is_alive(), self.output
            assert time.monotonic() - self.start < seconds
            time.sleep(0.002)

    def kill(self, number: int) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)


def sample(items: Sequence[Item], count: int, request: pytest.FixtureRequest) -> list[Item]:
    """All items with ``--all``, else some, always the same."""
    if request.config.getoption("--all", default=False):
        return list(items)
    return random.Random(0).sample(list(items), min(count, len(items)))


def tell(kind: str, counts: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Print what was tried of a kind, and what came of it."""
    shown = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
    with capsys.disabled():
        print(f"\n[attack] {kind}: tried {sum(counts.values())}, {shown}")


def equal_bits(first: Any, second: Any) -> bool:
    """Whether two nested states hold the same numbers."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal_bits(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        pairs: Callable[..., Any] = zip
        return len(first) == len(second) and all(
            equal_bits(a, b) for a, b in pairs(first, second, strict=True)
        )
    return bool(first == second)
