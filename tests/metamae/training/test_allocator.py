"""Memory that a step frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metamae.training.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from metamae.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(4):
    if number == 2:  # the first passes ask for the memory
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1_000_000) for _ in range(10)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
    command = [sys.executable, "-c", FAULTS, argument]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_a_second_pass_asks_the_system_for_little() -> None:
    """Two passes of 40 MB are 20,000 pages of 4 KiB, or fewer where pages are larger.

    Where the heap happens to lie moves both counts, by a block in the one case and by most of them
    in the other: hence the extremes of several processes.
    """
    if not keep_freed_memory():
        pytest.skip("not Linux with glibc")
    kept, left = ([page_faults(what) for _ in range(3)] for what in ("keep", "leave"))
    assert 8 * min(kept) < max(left), (kept, left)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
