"""Input of consecutive steps: prepared when asked for, or ahead in a thread where that pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, Literal, TypeVar

import torch

from metamae.training.batches import Prefetcher
from metamae.training.devices import count_cores

Item = TypeVar("Item")

TRIAL = 5
"""Steps that are watched before it is decided; the first of all, which warms up, is not one."""
SHARE = 0.1
"""Share of a step that a thread has to save."""


class Feed(Generic[Item]):
    """Gives the item of every step, and decides once whether a thread prepares them ahead.

    Preparing data that lie in memory takes a hundredth of a step, while a second thread and the
    first fight for cores, or, on CUDA, for the interpreter that launches the kernels. Where data
    come from a slow disk, or are decoded, a thread hides it. Under ``auto`` the first steps are
    watched: a thread is used if it can hide more than a tenth of them, that is what preparing waits
    (for a disk), and what it computes where a core is free for that. The items are the same either
    way: ``prepare`` is a function of the step.

    Args:
        prepare: Makes the item of a step.
        steps: Number of steps: nothing is prepared from this one on.
        mode: ``on`` always, ``off`` never, ``auto`` as described.
        device: Where training runs: on CUDA torch's threads do not compute the steps.

    Attributes:
        decision: What was decided and why, in words; empty before that.

    Example:
        >>> import torch
        >>> from metamae.training.feeding import Feed
        >>> with Feed(lambda step: step**2, 3, "auto", torch.device("cpu")) as items:
        ...     [items.take(step) for step in range(3)]
        [0, 1, 4]
    """

    def __init__(
        self,
        prepare: Callable[[int], Item],
        steps: int,
        mode: Literal["auto", "on", "off"],
        device: torch.device,
    ) -> None:
        """See the class."""
        self.prepare, self.steps = prepare, steps
        self.decision = ""
        self._ahead: Prefetcher[Item] | None = None
        self._threads = ExitStack()
        # Of the watched steps: how long, of that waiting in `prepare`, and computing in it.
        self._watched: list[float] = []
        self._waited: list[float] = []
        self._computed: list[float] = []
        self._taken, self._since = 0, 0.0
        self._busy = torch.get_num_threads() if device.type == "cpu" else 1
        self._undecided = mode == "auto"
        if not self._undecided:
            self._decide(mode != "off", f"training.prefetch={mode} on {device.type}")

    def take(self, step: int) -> Item:
        """The item of a step."""
        if self._ahead is not None:
            return self._ahead.take(step)
        if not self._undecided:
            return self.prepare(step)
        start, computed = time.perf_counter(), time.thread_time()
        if self._taken > 1:
            self._watched.append(start - self._since)
        item = self.prepare(step)
        elapsed, computed = time.perf_counter() - start, time.thread_time() - computed
        if self._taken > 0:
            self._computed.append(min(computed, elapsed))
            self._waited.append(max(0.0, elapsed - computed))
        self._taken, self._since = self._taken + 1, start
        if self._taken == TRIAL + 2:
            self._judge()
        return item

    def _judge(self) -> None:
        """By medians: a step during which the machine did something else does not count."""
        spare = count_cores() > self._busy
        whole = max(statistics.median(self._watched), 1e-9)
        waited, computed = statistics.median(self._waited), statistics.median(self._computed)
        reason = f"preparing takes {100 * (waited + computed) / whole:.0f} % of a step"
        if not spare:
            reason += f", with {self._busy} threads on {count_cores()} cores"
        self._decide((waited + (computed if spare else 0.0)) / whole > SHARE, reason)

    def _decide(self, ahead: bool, reason: str) -> None:
        self._undecided = False
        where = "by a thread of its own, ahead" if ahead else "between the steps"
        self.decision = f"input is prepared {where} ({reason})"
        if ahead:
            self._ahead = self._threads.enter_context(Prefetcher(self.prepare, self.steps))

    def __enter__(self) -> Feed[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.close()
