"""Input is prepared ahead where that pays; the items are the same."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metamae import load_dataset, make_config
from metamae.training import feeding, pretrain
from metamae.training.feeding import SHARE, TRIAL, Feed
from tests.tiny import SIZES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OURS = threading.current_thread().name


def follow(
    mode: Any, waits: float, works: float, device: torch.device = CPU
) -> tuple[Feed[int], list[str]]:
    """Take 20 items, each of which waits, and work as long between them; who prepared each."""
    threads: list[str] = []

    def prepare(step: int) -> int:
        threads.append("main" if threading.current_thread().name == OURS else "other")
        time.sleep(waits)
        return step

    with Feed(prepare, 20, mode, device) as feed:
        for step in range(20):
            assert feed.take(step) == step
            time.sleep(works)
    return feed, threads


def test_slow_reading_is_hidden() -> None:
    """Decided once, after the first step and a few watched ones."""
    feed, threads = follow("auto", waits=0.01, works=0.005)
    assert threads[: TRIAL + 3] == ["main"] * (TRIAL + 3)
    assert threads[TRIAL + 3 :] == ["other"] * (17 - TRIAL)
    assert feed.decision.startswith("input is prepared by a thread of its own, ahead (preparing ta")


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_quick_reading_stays_where_it_is(device: torch.device) -> None:
    feed, threads = follow("auto", waits=0.0, works=0.005, device=device)
    assert set(threads) == {"main"}
    assert re.search(r"between the steps \(preparing takes \d % of a step", feed.decision)


@pytest.mark.parametrize(
    ("device", "threads", "cores", "other"),
    [(CPU, 2, 2, False), (CPU, 2, 3, True), (CUDA, 2, 1, False), (CUDA, 2, 2, True)],
)
def test_what_computes_needs_a_free_core(
    device: torch.device, threads: int, cores: int, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing that takes half a step of pure computation; torch's threads are busy on a CPU."""
    clock = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(feeding, "count_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(time, "thread_time", lambda: clock["cpu"])

    def prepare(step: int) -> int:
        for name in clock:
            clock[name] += 1.0
        return step

    with Feed(prepare, 20, "auto", device) as feed:
        for step in range(TRIAL + 2):
            feed.take(step)
            clock["wall"] += 1.0
    assert ("a thread of its own" in feed.decision) is other
    assert "preparing takes 50 % of a step" in feed.decision
    assert SHARE < 0.5


@pytest.mark.parametrize(
    ("mode", "device", "first", "then"),
    [
        ("on", CPU, "main", "other"),
        ("off", CPU, "main", "main"),
        ("on", CUDA, "main", "other"),
        ("off", CUDA, "main", "main"),
    ],
)
def test_a_mode_decides_at_once(mode: Any, device: torch.device, first: str, then: str) -> None:
    feed, threads = follow(mode, 0.0, 0.0, device)
    assert threads == [first] + [then] * 19
    assert f"training.prefetch={mode} on {device.type}" in feed.decision


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_run_is_the_same_either_way(mode: str, tmp_path: Path) -> None:
    runs = []
    for name in ("auto", mode):
        overrides = [
            *SIZES,
            "training.steps=6",
            "training.batch_size=20",
            f"training.prefetch={name}",
        ]
        config = make_config("basic_motions", overrides=overrides)
        runs.append(pretrain(config, load_dataset("basic_motions"), tmp_path / name))
    assert runs[0].history.series == runs[1].history.series
