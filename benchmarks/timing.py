"""Side-by-side timing: every side once per round, in one process, after warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Milliseconds of every side in every round, by two clocks.

    Attributes:
        wall: Elapsed time.
        cpu: Time that all threads of this process spent, which other processes disturb less.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def interleave(
    sides: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 15,
    warmup: int = 3,
) -> Times:
    """Milliseconds of every side in every round.

    Sides alternate within a round, so that a slow spell of the machine hits all of them.
    """
    times = Times({name: [] for name in sides}, {name: [] for name in sides})
    for number in range(warmup + rounds):
        for name, run in sides.items():
            _wait(device)
            start = time.perf_counter(), time.process_time()
            run()
            _wait(device)
            if number >= warmup:
                times.wall[name].append(1000 * (time.perf_counter() - start[0]))
                times.cpu[name].append(1000 * (time.process_time() - start[1]))
    return times


def median(values: list[float]) -> float:
    """Median."""
    return statistics.median(values)


def middle(values: list[float]) -> float:
    """Median in two places."""
    return round(statistics.median(values), 2)


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles."""
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Operations per second that one large product reaches here, the best of several."""
    x = torch.randn(size, size, device=device, dtype=dtype)
    times = interleave({"product": lambda: x @ x}, device, rounds=10).wall["product"]
    return 2 * size**3 / (min(times) / 1000)
