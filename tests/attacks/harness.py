"""What an attack is: something is damaged, and it must be refused by name or change nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from metamae.errors import MetamaeError
from tests import ROOT

COUNTS: dict[str, Counter[str]] = defaultdict(Counter)
"""Kind to outcome to count, of all attacks of this process."""


class Attack:
    """Attacks of one kind.

    Args:
        kind: Its name in the table of counts.
        action: What is done with the damaged thing; returns what is compared.
        expected: What it returns when nothing is damaged.
        same: Compares two results.
    """

    def __init__(
        self,
        kind: str,
        action: Callable[[], Any],
        expected: Any,
        same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
    ) -> None:
        self.kind, self.action, self.expected, self.same = kind, action, expected, same

    def try_once(self, what: str) -> str:
        """Act, and count the outcome; anything but the two good ones is a failure of the test."""
        message, found = "", None
        try:
            found = self.action()
        except MetamaeError as fault:
            message = str(fault) or "nothing"
        assert "\n" not in message, f"{what}: an error of several lines: {message}"
        assert len(message) < 2000, f"{what}: an endless error: {message[:200]}"
        same = bool(message) or self.same(found, self.expected)
        assert same, f"{what}: other data without a word"
        outcome = "refused" if message else "unaffected"
        COUNTS[self.kind][outcome] += 1
        return outcome


def flips(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Copies with one flipped bit each, at places drawn by a seed."""
    random = Random(seed)
    for _ in range(count):
        place, bit = random.randrange(len(content)), random.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(damaged)


def cuts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Copies that end early, by a byte, by a checksum, by a block, or in their middle."""
    for missing in (1, 4, 8, 40, 512, 1024, len(content) // 2, len(content)):
        if missing <= len(content):
            yield f"the last {missing} bytes are missing", content[: len(content) - missing]


def run_child(
    program: str, *arguments: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own, which may crash."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )


def damage(attack: Attack, path: Path, copies: Iterator[tuple[str, bytes]]) -> Counter[str]:
    """Attack with each of the copies in place of a file, which is put back."""
    content, found = path.read_bytes(), Counter[str]()
    for what, copy in copies:
        path.write_bytes(copy)
        found[attack.try_once(f"{path.name}, {what}")] += 1
    path.write_bytes(content)
    return found
