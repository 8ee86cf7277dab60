"""Checkpoints in shards: every process writes its share, by ``torch.distributed.checkpoint``.

A run folder's ``shards`` holds folders with numbers for names, of which the highest counts: shares
of the tensors as torch writes them, ``state.pt`` with all the rest, ``sums.json`` with a checksum
of every other file. A folder gets its name when all of that is on the disk, so that one without a
number for a name is never taken for a checkpoint. Any number of processes reads what any other
wrote.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from metamae.errors import CheckpointError, is_systems, reason_of
from metamae.files import read_json, write_json
from metamae.training.checkpoint import Checkpoint
from metamae.training.ranks import Ranks
from metamae.training.run_folder import SHARDS, STATE, newest_shards

SUMS = "sums.json"
MODEL, MOMENTS = "model", "optimiser"
"""First parts of tensors' names; weights' names and moments' follow, after a slash."""


def write_shards(
    run_dir: Path, checkpoint: Checkpoint, tensors: dict[str, Tensor], ranks: Ranks
) -> None:
    """Write a checkpoint together; what was there is removed after it.

    Args:
        run_dir: The run folder, which all processes share.
        checkpoint: What is not divided.
        tensors: What is: distributed tensors, and plain ones that are the same in all processes.
        ranks: The processes.

    Raises:
        CheckpointError: a folder that the processes do not share.
    """
    partial = Path(ranks.from_first(lambda: str(_begin(run_dir))))
    with _quiet():
        save(tensors, storage_writer=FileSystemWriter(str(partial)))
    own = {path.name: _sum(path) for path in partial.glob(f"__{ranks.rank}_*")}
    sums = {name: number for some in ranks.all(own) for name, number in some.items()}
    ranks.from_first(lambda: _finish(partial, checkpoint, sums))


def _begin(run_dir: Path) -> Path:
    newest = newest_shards(run_dir)
    number = int(newest.name) + 1 if newest else 1
    partial = run_dir / SHARDS / f"{number:06d}.partial"
    for left in partial.parent.glob("*.partial"):  # of writers that were killed
        shutil.rmtree(left)
    partial.mkdir(parents=True)
    return partial


def _finish(partial: Path, checkpoint: Checkpoint, sums: dict[str, int]) -> None:
    lacking = [name for name in sums if not (partial / name).is_file()]
    if lacking:
        raise CheckpointError(
            f"expected a run folder that the machines of all processes share, got one without "
            f"{lacking[0]} in {partial}; put --out on a file system that all of them see"
        )
    checkpoint.save(partial / STATE)
    others = {name: _sum(partial / name) for name in (STATE, ".metadata")}
    write_json(partial / SUMS, sums | others)
    _sync(partial)
    complete = partial.with_suffix("")
    os.replace(partial, complete)
    _sync(complete.parent)
    for older in complete.parent.iterdir():
        if older != complete:
            shutil.rmtree(older, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the system write down what a folder holds, where it does so for folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sum(path: Path) -> int:
    number = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            number = zlib.crc32(part, number)
    return number


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch remarks of its own code, and of one process that reads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """Name the folder in whatever its content makes of a reader."""
    try:
        yield
    # What a changed file makes of torch's reader has no common name.
    except Exception as fault:
        if is_systems(fault) and not isinstance(fault, FileNotFoundError):
            raise
        raise CheckpointError(
            f"expected a complete checkpoint in {folder}, got a damaged one "
            f"({reason_of(fault)}); delete its run folder and run again"
        ) from fault


def read_state(folder: Path) -> Checkpoint:
    """What is not divided of a checkpoint.

    Raises:
        CheckpointError: a damaged file.
    """
    return Checkpoint.load(folder / STATE)


def check_sums(folder: Path, ranks: Ranks) -> None:
    """Compare the checksums of a checkpoint's files, of which every process reads some.

    Raises:
        CheckpointError: a missing or changed file, in all processes.
    """
    fault = ""
    try:
        sums = read_json(folder / SUMS)
        for name in sorted(sums)[ranks.rank :: ranks.size]:
            if os.sep in name or _sum(folder / name) != sums[name]:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, TypeError) as found:
        fault = reason_of(found)
    with _damaged(folder):
        for said in ranks.all(fault):
            if said:
                raise ValueError(said)


def sizes_in(folder: Path) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a checkpoint."""
    return {name: entry.size for name, entry in _entries(folder).items()}


def _entries(folder: Path) -> Mapping[str, TensorStorageMetadata]:
    with _damaged(folder):
        found: Any = _Reader(str(folder)).read_metadata().state_dict_metadata
        return dict(found)


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read together into tensors that are there, distributed ones and plain ones."""
    with _damaged(folder), _quiet():
        load(tensors, storage_reader=_Reader(str(folder)))


def read_whole(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """A checkpoint in shards as one that was never divided, read by this process alone.

    Raises:
        CheckpointError: a damaged one.
    """
    check_sums(folder, Ranks())
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _entries(folder).items()
    }
    with _damaged(folder), _quiet():
        load(tensors, storage_reader=_Reader(str(folder)), no_dist=True)
        saved = read_state(folder)
        first = f"{MODEL}/"
        model = {
            name.removeprefix(first): value.to(device)
            for name, value in tensors.items()
            if name.startswith(first)
        }
        moments: dict[int, dict[str, Tensor]] = {}
        for number, name in enumerate(saved.optimiser["names"]):
            first = f"{MOMENTS}/{name}/"
            moments[number] = {
                key.removeprefix(first): value.to(device)
                for key, value in tensors.items()
                if key.startswith(first)
            }
    optimiser = {"state": moments, "param_groups": saved.optimiser["param_groups"]}
    return replace(saved, model=model, optimiser=optimiser)


_KNOWN = {
    "torch": re.compile(r"Size|u?int\d+|b?float\d+\w*|bool|complex\d+|strided|device"),
    "torch.serialization": re.compile("_get_layout"),
    "torch.distributed.checkpoint.metadata": re.compile(
        "Metadata|MetadataIndex|StorageMeta|TensorProperties|TensorStorageMetadata"
        "|ChunkStorageMetadata|_MEM_FORMAT_ENCODING"
    ),
    "torch.distributed.checkpoint.filesystem": re.compile("_StorageInfo"),
}
"""What the description of a checkpoint consists of, by module."""


def _place(*parts: object) -> str:
    return "/".join(map(str, parts))


class _Unpickler(pickle.Unpickler):
    """Builds what describes a checkpoint's tensors, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":  # where it was written, which nobody asks for
            return _place
        if module in _KNOWN and _KNOWN[module].fullmatch(name):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module[:40]}.{name[:40]}")


class _Reader(FileSystemReader):
    """Torch's reader, which runs whatever a description of a checkpoint says; this one does not."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the tensors."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"the description is of type {type(metadata).__name__}")
        for entry in metadata.state_dict_metadata.values():
            if not isinstance(entry, TensorStorageMetadata):
                raise TypeError(f"it holds more than tensors ({type(entry).__name__})")
        for place in metadata.storage_data.values():
            if os.sep in place.relative_path:
                raise ValueError(f"a tensor lies outside, in {place.relative_path[:80]!r}")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata
