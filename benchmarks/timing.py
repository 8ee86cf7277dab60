"""Side-by-side timing: every side once per round, in one process, after warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleave(
    sides: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 15,
    warmup: int = 3,
) -> dict[str, list[float]]:
    """Milliseconds of every side in every round.

    Sides alternate within a round, so that a slow spell of the machine hits all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, run in sides.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if number >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def median(values: list[float]) -> float:
    """Median."""
    return statistics.median(values)


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles."""
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
