"""Peak memory of one run, counted exactly: the most bytes alive at once, above those before it.

On CUDA the caching allocator keeps that count itself. On a CPU nothing does, so torch's profiler
logs every allocation and release of the CPU allocator (temporaries inside kernels too), and the
running sum of that log has a highest point. The count is in requested bytes: it does not depend on
timing, on other processes, or on what the operating system does with freed pages. A release of a
block from before the run is not logged, so freeing old memory does not hide new; unless an earlier
count saw it, so counts that are compared to the last MiB belong into processes of their own.
Scratch that a library such as oneDNN takes from ``malloc`` without asking torch is not seen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


def peak_mib(run: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Most MiB alive at once during ``run()``, and what it returned.

    Run it once before: lazy initialisation and cached constants are no part of the peak.
    """
    gc.collect()
    peak, result = (_on_cuda if device.type == "cuda" else _on_cpu)(run)
    return round(peak / 2**20, 2), result


def _on_cuda(run: Callable[[], Result]) -> tuple[int, Result]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def _on_cpu(run: Callable[[], Result]) -> tuple[int, Result]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0)), result
