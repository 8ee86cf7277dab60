"""Prepared sets: memory-mapped arrays with a manifest, made once from the raw files.

``DATA_DIR/prepared/NAME/`` holds one ``.npy`` per array and ``manifest.json``. It is made under a
temporary name and renamed when complete, so it is either whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.dataset import Array, Dataset, Partition, Rows, Selected
from metamae.data.preparing.source import Source
from metamae.errors import DataError
from metamae.inputs import Inputs
from metamae.progress import Reporter

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCK = 1 << 24


def folder_of(source: Source, data_dir: Path) -> Path:
    """Where the prepared form of a set lies."""
    return data_dir / "prepared" / source.name


@dataclass(frozen=True)
class Prepared:
    """A prepared set on disk.

    Attributes:
        source: What it was made from.
        folder: Where it lies.
        manifest: What its ``manifest.json`` says.
    """

    source: Source
    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, source: Source, data_dir: Path) -> Prepared:
        """Read and check the manifest, and that every array is there with its size.

        Raises:
            DataError: not prepared, of another format, or damaged; the message has the command.
        """
        folder = folder_of(source, data_dir)
        command = f"metamae data prepare {source.name} --data-dir {data_dir}"
        if not folder.is_dir():
            raise DataError(f"expected {source.name!r} prepared in {folder}; run: {command}")
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["format"] != FORMAT or manifest["name"] != source.name:
                raise ValueError(f"format {manifest['format']} of {manifest['name']}")
            manifest["partitions"], manifest["facts"], manifest["options"]
            prepared = cls(source, folder, manifest)
            for name, entry in manifest["arrays"].items():
                prepared._check_size(name, entry)
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise DataError(
                f"expected a whole prepared set in {folder}, got a damaged or older one "
                f"({fault}); run: {command} --again"
            ) from fault
        return prepared

    @property
    def facts(self) -> dict[str, Any]:
        """What the reader noted."""
        facts: dict[str, Any] = self.manifest["facts"]
        return facts

    @property
    def options(self) -> dict[str, str]:
        """The options it was prepared with."""
        options: dict[str, str] = self.manifest["options"]
        return options

    def array(self, name: str) -> Array:
        """One array, memory-mapped and read-only.

        Raises:
            DataError: its header does not say what the manifest says.
        """
        entry = self.manifest["arrays"][name]
        path = self.folder / f"{name}.npy"
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as fault:
            if entry["shape"][0]:
                raise DataError(f"expected an array in {path}: {fault}; prepare again") from fault
            return np.zeros(entry["shape"], entry["dtype"])  # nothing to map
        if [*array.shape] != entry["shape"] or str(array.dtype) != entry["dtype"]:
            raise DataError(
                f"expected {path} with shape {entry['shape']} and type {entry['dtype']}, got "
                f"{[*array.shape]} and {array.dtype}; prepare again"
            )
        return array

    def verify(self, reporter: Reporter | None = None) -> list[str]:
        """Compare the checksum of every array; returns the names of damaged ones."""
        arrays = self.manifest["arrays"]
        stage = (reporter or Reporter(None)).stage("checksums", total=len(arrays), unit="files")
        damaged = []
        with stage as bar:
            for name, entry in arrays.items():
                if sha256(self.folder / f"{name}.npy") != entry["sha256"]:
                    damaged.append(name)
                bar.advance()
        return damaged

    def dataset(self, token_size: Sequence[int] = ()) -> Dataset:
        """The data set, its arrays memory-mapped."""
        source = self.source
        inputs = source.specify(token_size)
        build = source.partitions or Prepared.stored_partitions
        parts = build(self, inputs)
        task = source.task
        if task is not None and "classes" in self.facts:
            task = replace(task, classes=tuple(self.facts["classes"]))
        return Dataset(
            name=source.name,
            inputs=inputs,
            task=task,
            pretrain=parts.get("pretrain"),
            train=parts.get("train"),
            test=parts.get("test"),
            stands_for=source.pretrained_on,
            card={"origin": source.origin, "split": source.split, **self.manifest},
        )

    def stored_partitions(self, inputs: Inputs) -> dict[str, Partition]:
        """Partitions whose examples are rows of arrays."""
        return {
            part: self._partition(entry, inputs)
            for part, entry in self.manifest["partitions"].items()
        }

    def _partition(self, entry: Mapping[str, Any], inputs: Inputs) -> Partition:
        index = None if entry["index"] is None else self.array(entry["index"])

        def rows(name: str) -> Rows:
            whole = self.array(name)
            return whole if index is None else Selected(whole, index)

        labels = None if entry["labels"] is None else np.asarray(rows(entry["labels"])[:])
        return Partition(
            arrays={spec.name: rows(entry["arrays"][spec.name]) for spec in inputs},
            inputs=inputs,
            scaling=self.source.scaling,
            labels=labels
            if labels is None or labels.dtype.kind == "f"
            else labels.astype(np.int64),
        )

    def _check_size(self, name: str, entry: Mapping[str, Any]) -> None:
        size = (self.folder / f"{name}.npy").stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{name}.npy has {size} bytes instead of {entry['bytes']}")


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
