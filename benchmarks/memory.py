"""Peak memory of one run, counted exactly: the most bytes alive at once, above those before it.

On CUDA the caching allocator keeps that count itself. On a CPU nothing does, so torch's profiler
logs every allocation and release of the CPU allocator (temporaries inside kernels too), and the
running sum of that log has a highest point. The count is in requested bytes: it does not depend on
timing, on other processes, or on what the operating system does with freed pages. A release of a
block from before the run is not logged, so freeing old memory does not hide new. Scratch that a
library such as oneDNN takes from ``malloc`` without asking torch is not seen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes alive at once during ``run()``; its result is dropped only afterwards."""
    run()  # lazy initialisation and cached constants are no part of the peak
    gc.collect()
    return _peak_on_cuda(run, device) if device.type == "cuda" else _peak_on_cpu(run)


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """The same in MiB."""
    return round(peak_bytes(run, device) / 2**20, 2)


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))
