"""Examples per second of shuffled batches from a cold disk, from page cache, and for an H200.

    OMP_NUM_THREADS=1 taskset -c 0 pytest benchmarks/ --benchmark --device cpu -k "input and disk"

A file of the set's own examples, repeated until it has :data:`BYTES`, is written and synced. Before
every cold pass it is unmapped and ``posix_fadvise(POSIX_FADV_DONTNEED)`` has the system drop its
pages, which needs no privileges; the pass maps it again and reads batches of training. What came
from the disk is counted by the system (``/proc/self/io``). Rows go to ``results/input-cpu.json``,
list ``disk``.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from rows import RESULTS, Row, origin
from test_input import made_source, save_disk, significant
from timing import spread

from metamae.data import mapped
from metamae.data.dataset import Dataset, Partition
from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared
from metamae.training.batches import batch_indices
from metamae.training.provenance import device_name

BYTES = 3 * 2**27
BATCH, BATCHES = 64, 32
SETS = (
    *("higgs", "eurosat", "genomics", "pfam", "wafermap"),
    *("librispeech", "imagenet32"),
)
"""Full sets to pretrain on whose examples are rows of an array; windows of PAMAP2 are none, and an
example of MSCOCO is one of two arrays."""


@pytest.mark.parametrize("name", SETS)
def test_input_from_disk(
    device: torch.device, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if device.type != "cpu" or not Path("/proc/self/io").exists():
        pytest.skip("measured by what Linux tells of a process, on a CPU")
    rounds = request.config.getoption("--rounds") or 5
    source = made_source(name, tmp_path)
    prepare(source, tmp_path, partial=True)
    data = Prepared.open(source, tmp_path).dataset()
    row = measure(data, tmp_path, rounds)
    about = {"rounds": rounds, "hardware": device_name(device)} | origin()
    save_disk({"dataset": name} | row | about)
    request.getfixturevalue("tables").append(line(name, row))
    assert row["read_mib"] > 0, "nothing came from the disk: is the folder in memory?"


def measure(data: Dataset, folder: Path, rounds: int) -> Row:
    """Passes over the same batches in turn: cold, from page cache, cold row by row."""
    files = write(data.need("pretrain"), folder)
    count, size = example_of(files)
    rates: dict[str, list[float]] = {"cold": [], "cached": [], "around": []}
    read: dict[str, list[int]] = {name: [] for name in rates}
    for number in range(rounds + 1):
        for name in rates:
            if name != "cached":
                for path in files.values():
                    drop(path)
            before = disk_bytes()
            with patch.object(mapped, "AHEAD_FROM", 2**62 if name == "around" else 0):
                rates[name].append(rate(data, files, number))
            read[name].append(disk_bytes() - before)
    columns: Row = {"rows": count, "example_bytes": size, "batch": BATCH}
    for name in ("cached", "cold", "around"):
        columns[f"{name}_per_s"] = significant(statistics.median(rates[name][1:]))
        columns[f"{name}_spread"] = significant(spread(rates[name][1:]))
    known = gpu_rate(data.name)
    return columns | {
        "read_mib": significant(statistics.median(read["cold"][1:]) / 2**20),
        "around_mib": significant(statistics.median(read["around"][1:]) / 2**20),
        "used_mib": significant(BATCH * BATCHES * size / 2**20),
        "h200_per_s": significant(known),
        "cold_headroom": significant(columns["cold_per_s"] / known),
    }


def write(part: Partition, folder: Path) -> dict[str, Path]:
    """Files of the partition's examples again and again; one per input, of as many rows."""
    arrays = {name: np.asarray(rows[:]) for name, rows in part.arrays.items()}
    count = BYTES // sum(array[0].nbytes for array in arrays.values())
    files = {}
    for name, array in arrays.items():
        files[name] = folder / f"repeated-{name}.npy"
        shape = (count, *array.shape[1:])
        whole = np.lib.format.open_memmap(files[name], "w+", array.dtype, shape)
        for start in range(0, count, len(array)):
            whole[start : start + len(array)] = array[: count - start]
        whole.flush()
        del whole  # unmapped
    return files


def example_of(files: dict[str, Path]) -> tuple[int, int]:
    """Number of examples, and bytes of one."""
    arrays = [np.load(path, mmap_mode="r") for path in files.values()]
    return len(arrays[0]), sum(array[0].nbytes for array in arrays)


def drop(path: Path) -> None:
    """Have the system drop a file's pages; it drops none that are mapped or not yet written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def rate(data: Dataset, files: dict[str, Path], number: int) -> float:
    """Examples a second of one pass; the files are mapped in it, and unmapped after it."""
    arrays = {name: np.load(path, mmap_mode="r") for name, path in files.items()}
    part = replace(data.need("pretrain"), arrays=arrays, labels=None, groups=None)
    order = [batch_indices(len(part), BATCH, number, step) for step in range(BATCHES)]
    start = time.perf_counter()
    for index in order:
        part.batch(index)
    return BATCH * BATCHES / (time.perf_counter() - start)


def disk_bytes() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def gpu_rate(name: str) -> float:
    """Examples a second of MetaMAE's eager float32 step on the H200 of the overhead table."""
    rows = json.loads((RESULTS / "overhead-cuda.json").read_text())["rows"]
    steps = [
        1000 * row["batch"] / row["metamae_ms"]
        for row in rows
        if (row["setting"], row["mode"], row["dtype"]) == (f"paper/{name}", "eager", "float32")
        and row["decoder"] == "self"
    ]
    return max(steps)


def line(name: str, row: Row) -> str:
    """A row in short."""
    return (
        f"input from disk, {name}: {row['cold_per_s']} examples/s cold, {row['cached_per_s']} from "
        f"page cache; an H200 takes {row['h200_per_s']}\n"
    )
