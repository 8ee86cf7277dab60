"""Arrays on disk: a process reads the rows of its share, and no others."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from metamae import load_dataset
from metamae.data import mapped
from metamae.data.dataset import Dataset, Partition, Selected
from metamae.data.mapped import read_ahead
from metamae.training.batches import batch_indices
from metamae.training.ranked import RankedRun
from metamae.training.ranks import Ranks
from tests.metamae.training.test_ranks import CPU, config_of

T = TypeVar("T")
LINUX = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="by what Linux tells of a process"
)


class Counted:
    """Rows that remember which of them were read."""

    def __init__(self, array: Any) -> None:
        self.array, self.read = array, []

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> Any:
        self.read += np.arange(len(self.array))[rows].tolist()
        return self.array[rows]


class Lone(Ranks):
    """One of several processes, the others of which nobody started."""

    def from_first(self, action: Callable[[], T]) -> T:
        return action()


class LoneRun(RankedRun):
    """Its run, as far as the first batch."""

    def averaging(self, pieces: Any) -> Any:
        return pieces


def test_a_process_reads_the_rows_of_its_share(tmp_path: Path) -> None:
    """Shares are those of the seed's order, and all of a batch together; the start reads a few."""
    config, plain = config_of("metamae"), load_dataset("basic_motions")
    assert plain.pretrain
    (name,) = plain.pretrain.arrays
    array = np.tile(plain.pretrain.arrays[name], (100, 1, 1))  # type: ignore[arg-type]
    shares = []
    for rank in range(3):
        rows = Counted(array)
        part = replace(plain.pretrain, arrays={name: rows}, labels=None, groups=None)
        card = {"arrays": {name: {"sha256": "of a prepared set"}}}
        data: Dataset = replace(plain, pretrain=part, card=card)
        run = LoneRun(config, data, tmp_path, CPU, Lone(rank, 3))
        assert len(rows.read) < 300 < len(array) / 10, "its fingerprint's sample"
        rows.read.clear()
        for number in range(4):
            run.prepare(number)
        shares.append(rows.read)
    whole = [batch_indices(len(array), 5, config.seed, number).tolist() for number in range(4)]
    assert [len(share) for share in shares] == [4, 8, 8]
    assert sorted(chain(*shares)) == sorted(chain(*whole))


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@LINUX
def test_a_large_array_is_not_loaded(tmp_path: Path) -> None:
    """Nor read around: of half a gigabyte, batches take a few megabytes of memory."""
    shape = (2**19, 1024)  # a file with a hole, which takes no disk
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, shape)
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    before = anonymous()
    part = part_of(Selected(array, np.arange(0, len(array), 2)))
    for number in range(8):
        part.batch(batch_indices(len(part), 64, 0, number))
    assert anonymous() - before < 2**25 < array.nbytes / 10


def part_of(rows: Any) -> Partition:
    from metamae.inputs import Tabular

    spec = Tabular(name="row", columns=rows[[0]].shape[1])
    return Partition(arrays={"row": rows}, inputs=(spec,))


class Advised:
    """What a mapping was asked for."""

    def __init__(self, array: Any) -> None:
        self.mapping, self.asked = array._mmap, []

    def __len__(self) -> int:
        return len(self.mapping)

    def madvise(self, advice: int, start: int, length: int) -> None:
        self.mapping.madvise(advice, start, length)
        self.asked.append((start, start + length))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice")
def test_the_pages_of_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a view as of the whole array; rows that are not there are left to who reads them."""
    monkeypatch.setattr(mapped, "AHEAD_FROM", 0)
    np.save(tmp_path / "a.npy", np.arange(3000 * 100, dtype=np.int32).reshape(3000, 100))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    address, asked = mapped._address(array._mmap), Advised(array)
    monkeypatch.setattr(mapped, "_address", lambda mapping: address)
    for view, row, place in ((array, 7, 7), (array[1000:], 5, 1005), (array, -1, 2999)):
        asked.asked.clear()
        view._mmap = asked
        assert read_ahead(view, torch.tensor([row]).numpy()) == 1
        ((start, stop),) = asked.asked
        own = array.offset + 400 * place
        assert start % mmap.PAGESIZE == 0
        assert own - mmap.PAGESIZE < start <= own
        assert stop == own + 400
    asked.asked.clear()
    assert read_ahead(array, np.array([3000])) == 1
    assert asked.asked == []
    view._mmap = asked.mapping
    for rows in (slice(0, 5), np.array([True] * 3000), np.array([[1]])):
        assert read_ahead(array, rows) == 0
    monkeypatch.undo()
    assert read_ahead(array, np.array([1])) == 0, "small"
