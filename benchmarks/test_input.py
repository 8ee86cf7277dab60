"""Samples per second that every data set's reader delivers, beside what training asks for.

    pytest benchmarks/ --benchmark --device cpu -k input
    pytest benchmarks/ --benchmark --device cpu -k "input and librispeech"

Embedded sets are read as they are; full ones are prepared from archives that the tests make, in a
temporary folder. Every test measures one set and puts its row into ``results/input-DEVICE.json`` in
place of an older one.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import made_sets
import numpy as np
import pytest
import torch
from rows import RESULTS, Row, hardware_of, merged, origin
from settings import Variant, configure, inputs_of, training_step, values
from tables import markdown
from timing import interleave, spread

from metamae import build_method, load_dataset
from metamae.config.schema import Config
from metamae.data.dataset import Dataset, Partition, Selected
from metamae.data.pocket import POCKET
from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared
from metamae.data.preparing.source import Source
from metamae.data.sources import SOURCES, get_source
from metamae.files import write_json, write_text
from metamae.training.batches import Prefetcher, batch_indices
from metamae.training.provenance import device_name
from metamae.training.run import Run

BATCHES = 16  # read in a row; one alone is over too soon to be timed
FEATURE_BATCH = 256  # of extract_features
NAMES = (*POCKET, *SOURCES)
NOTES = """\
`read_per_s`: samples a second that `Partition.batch` gives: batches of shuffled rows where a set is
trained on; 256 consecutive rows at once, as a probe reads them, where it is only probed.
`loaded_per_s`: the whole path of training, masks, prefetching thread and the copy to the device
included, with nobody computing beside it. `consumed_per_s`: what the consumer takes when it never
waits. Of a set to pretrain on that is the MetaMAE step of its preset, in eager float32 in this run
or, if faster, from the overhead table of the same hardware (column `timed`); of a set that is only
probed, the encoder's features, which a probe computes once. `headroom` is what is delivered over
what is consumed: above 1, loading is not the limit. `consumed_mib_per_s` is what the consumer takes
of the arrays in bytes: what a disk must give once they are larger than memory. `prepared_per_s`:
samples a second from raw archive to arrays; one of PAMAP2 is a window's length of a recording.

Full sets are made ones of few examples, in the published layout: their arrays lie in memory (it is
the reader that is measured, not a disk), their pictures are small, and fixed costs weigh on
`prepared_per_s`. `batch` is the consumer's, smaller than published on a CPU. Rates are medians over
rounds, interleaved in one process, by the clock of the column `clock` (preparing: always elapsed
time); where that is `cpu`, the consumer is taken to keep all threads busy. Spreads are half the
distance between the quartiles."""

DISK = """\
From a cold disk (`test_input_disk.py`): 32 batches of 64 shuffled rows of a file of 384 MiB, one
thread, elapsed time. `cold_per_s` is after the file was unmapped and dropped from page cache
(`posix_fadvise`), `cached_per_s` right after that, of the same rows. `around_per_s` is cold too,
but with rows that are waited for one by one, as files below 256 MiB are read, where the system
reads around them. `read_mib` and `around_mib` are what came from the disk, `used_mib` the bytes of
the rows. The disk is a virtual one, whose host may have a cache of its own. `h200_per_s` is
MetaMAE's eager float32 step on an H200 ([overhead-cuda](overhead-cuda.md)), `cold_headroom` is
`cold_per_s` over it."""


@dataclass(frozen=True)
class Consumer:
    """Who takes the samples: its name, one batch of it, how many samples that is."""

    name: str
    run: Callable[[], object]
    samples: int


@pytest.mark.parametrize("name", NAMES)
def test_input(
    device: torch.device, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    rounds = request.config.getoption("--rounds") or 5
    clock = request.config.getoption("--clock") if device.type == "cpu" else "wall"
    data, prepared_per_s = (load_dataset(name), None) if name in POCKET else made(name, tmp_path)
    row = measure(data, device, rounds, clock, tmp_path / "run")
    row["prepared_per_s"] = prepared_per_s
    about = {"clock": clock, "rounds": rounds, "hardware": device_name(device)} | origin()
    report = save(row | about, device)
    request.getfixturevalue("tables").append(line(row))
    assert row["headroom"] > 0
    assert [told["dataset"] for told in report["rows"]].count(name) == 1


def made(name: str, folder: Path) -> tuple[Dataset, float]:
    """A full data set from a made archive, and samples a second of preparing it."""
    source = made_source(name, folder)
    run = partial(prepare, source, folder, again=True, partial=True)
    times = interleave({"": run}, torch.device("cpu"), rounds=3, warmup=1).wall[""]
    prepared = Prepared.open(source, folder)
    return prepared.dataset(), significant(1000 * samples(prepared) / statistics.median(times))


def made_source(name: str, folder: Path) -> Source:
    """A full data set whose archive was made, and lies in a folder."""
    source = get_source(name)
    lacking = [m for m in source.modules if importlib.util.find_spec(m.partition(".")[0]) is None]
    if lacking:
        pytest.skip(f"the reader of {name} needs {', '.join(lacking)}: pip install 'metamae[data]'")
    made_sets.make(name, folder)
    return source


def samples(prepared: Prepared) -> int:
    """Examples that the arrays of a prepared set hold."""
    shapes = {name: told["shape"] for name, told in prepared.manifest["arrays"].items()}
    parts = prepared.manifest["partitions"].values()
    stored = {tuple(part["arrays"].values()) for part in parts}
    if stored:
        return sum(max(shapes[name][0] for name in names) for names in stored)
    (spec,) = prepared.source.specify(())  # one recording, of which windows are cut
    return int(shapes["recordings"][0] // spec.length)


def measure(data: Dataset, device: torch.device, rounds: int, clock: str, folder: Path) -> Row:
    """Reader and consumer of one set, interleaved."""
    setting = f"pocket/{data.name}" if data.name in POCKET else f"paper/{data.stands_for}"
    config = configure(setting, "metamae", Variant(), device)
    size = config.training.batch_size
    consumer = consumer_of(data, config, setting, device)
    loading = loaders(data, config, device, folder)
    sides = {name: side for name, (side, _) in loading.items()} | {"consumer": consumer.run}
    found = getattr(interleave(sides, device, rounds=rounds, warmup=2), clock)
    counts = {name: count for name, (_, count) in loading.items()} | {"consumer": consumer.samples}
    rates = {name: [1000 * counts[name] / ms for ms in times] for name, times in found.items()}
    if clock == "cpu":
        rates["consumer"] = [rate * torch.get_num_threads() for rate in rates["consumer"]]
    consumed, timed = statistics.median(rates["consumer"]), "here"
    if consumer.name == "training step":
        consumed, timed = max((consumed, timed), fastest_known(setting, device))
    delivered = statistics.median(rates.get("loaded", rates["read"]))
    return {
        "dataset": data.name,
        "consumer": consumer.name,
        "preset": setting,
        "batch": size,
        **rate_columns(rates),
        "consumed_per_s": significant(consumed),
        "timed": timed,
        "headroom": significant(delivered / consumed),
        "consumed_mib_per_s": significant(consumed * sample_bytes(data) / 2**20),
    }


def rate_columns(rates: dict[str, list[float]]) -> Row:
    """Median and spread of what is delivered."""
    columns: Row = {}
    for name in ("read", "loaded"):
        known = rates.get(name)
        columns[f"{name}_per_s"] = significant(statistics.median(known)) if known else None
        columns[f"{name}_spread"] = significant(spread(known)) if known else None
    return columns


def loaders(
    data: Dataset, config: Config, device: torch.device, folder: Path
) -> dict[str, tuple[Callable[[], object], int]]:
    """Ways to read some batches, and the samples they give."""
    size = config.training.batch_size
    if data.pretrain is None:
        part = filled(data.need("train"), FEATURE_BATCH)
        return {"read": (partial(part.batch, slice(0, FEATURE_BATCH)), FEATURE_BATCH)}
    part = filled(data.pretrain, BATCHES * size)
    # Private, but the very path of training: a copy of it here could drift away.
    run = Run(config, replace(data, pretrain=part), folder, device)

    def read() -> None:
        for step in range(BATCHES):
            part.batch(batch_indices(len(part), size, config.seed, step))

    def load() -> None:
        with Prefetcher(run.prepare, BATCHES) as ahead:
            for step in range(BATCHES):
                run.put(ahead.take(step))

    return {"read": (read, BATCHES * size), "loaded": (load, BATCHES * size)}


def filled(part: Partition, rows: int) -> Partition:
    """The same examples again and again, where there are fewer than asked for."""
    if len(part) >= rows:
        return part
    index = np.arange(rows) % len(part)
    arrays = {name: Selected(array, index) for name, array in part.arrays.items()}
    return replace(part, arrays=arrays, labels=None, groups=None)


def consumer_of(data: Dataset, config: Config, setting: str, device: torch.device) -> Consumer:
    """The training step, or the features of a set that is only probed."""
    size = config.training.batch_size
    if data.pretrain is not None:
        side = training_step(config, inputs_of(setting), device)
        return Consumer("training step", side.run, size)
    method = build_method(config, data.inputs).to(device).eval()
    batch = values(data.inputs, size, device)
    return Consumer("features", torch.no_grad()(partial(method.features, batch)), size)


def fastest_known(setting: str, device: torch.device) -> tuple[float, str]:
    """Samples a second of the fastest step in the overhead table, if it is of this hardware."""
    stem = "overhead" if setting.startswith("paper/") else "overhead-pocket"
    path = RESULTS / f"{stem}-{device.type}.json"
    report = json.loads(path.read_text()) if path.exists() else {"hardware": None, "rows": []}
    if report["hardware"] != device_name(device):
        return 0.0, ""
    tokens = sum(spec.tokens for spec in inputs_of(setting))
    known = [
        (row["tokens_per_s"] / tokens, f"{row['mode']} {row['dtype']} {row['policy']}")
        for row in report["rows"]
        if (row["setting"], row["decoder"]) == (setting, "self")
        and "tokens_per_s" in row  # which older rows do not have
    ]
    return max(known, default=(0.0, ""))


def sample_bytes(data: Dataset) -> int:
    """Bytes of one sample in the arrays."""
    part = data.pretrain or data.need("train")
    return sum(np.asarray(array[[0]]).nbytes for array in part.arrays.values())


def significant(value: float) -> float:
    """Three digits: rates differ by orders of magnitude."""
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded >= 100 else rounded


def save(row: Row, device: torch.device) -> Row:
    """Put a row into the result file, and write the file's page."""
    path = RESULTS / f"input-{device.type}.json"
    rows = merged(path, [row], ("dataset",), lambda r: NAMES.index(r["dataset"]))
    report = {"hardware": hardware_of(rows), "rows": rows, "disk": stored(path).get("disk", [])}
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(report))
    return report


def stored(path: Path) -> Row:
    """The report as it is."""
    report: Row = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return report


def save_disk(row: Row) -> None:
    """Put a row of ``test_input_disk.py`` into the result file of the CPU."""
    path = RESULTS / "input-cpu.json"
    report = stored(path)
    kept = [old for old in report.get("disk", []) if old["dataset"] != row["dataset"]]
    report["disk"] = sorted([*kept, row], key=lambda r: NAMES.index(r["dataset"]))
    write_json(path, report)
    write_text(path.with_suffix(".md"), page(report))


def line(row: Row) -> str:
    """A row in short."""
    delivered = row["loaded_per_s"] or row["read_per_s"]
    return (
        f"input, {row['dataset']}: {delivered} samples/s, {row['consumer']} takes "
        f"{row['consumed_per_s']}: headroom {row['headroom']}\n"
    )


def page(report: Row) -> str:
    """The report as Markdown; columns that a kind of set does not have are left out."""
    groups: dict[str, list[Row]] = {}
    for row in report["rows"]:
        full = "Full sets to probe" if row["consumer"] == "features" else "Full sets to pretrain on"
        shown = {k: v for k, v in row.items() if v is not None}
        groups.setdefault("Embedded sets" if row["dataset"] in POCKET else full, []).append(shown)
    if report.get("disk"):
        groups["From a cold disk, beside page cache and an H200"] = report["disk"]
    about = f"{report['hardware']}.\n\n{NOTES}\n\n{DISK}"
    return markdown("Input, beside what training consumes", about, list(groups.items()))
