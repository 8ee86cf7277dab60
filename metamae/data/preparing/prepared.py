"""Prepared sets: memory-mapped arrays with a manifest, made once from the raw files.

``DATA_DIR/prepared/NAME/`` holds one ``.npy`` per array and ``manifest.json``. It is made under a
temporary name and renamed when complete, so it is either whole or not there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.dataset import Array, Dataset, Partition, Rows, Selected
from metamae.data.preparing.source import Source
from metamae.errors import DataError, MetamaeError, reason_of
from metamae.files import read_json
from metamae.inputs import Inputs
from metamae.progress import Reporter

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCK = 1 << 24
_VERIFIED: set[tuple[object, ...]] = set()
"""Files, their sizes and times, whose checksums this process has verified."""


_NAME = re.compile(r"[\w-]+")
_PARTS = ("pretrain", "train", "test")


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Check types and names, for manifests come from files.

    Raises:
        ValueError: naming what is wrong.
        KeyError: an entry is missing.
    """
    arrays, partitions, options = (manifest[key] for key in ("arrays", "partitions", "options"))
    for section in (arrays, partitions, options, manifest["facts"]):
        if not isinstance(section, dict):
            raise ValueError(f"expected names and values, got {type(section).__name__}")
    for name, entry in arrays.items():
        sizes = [*entry["shape"], entry["bytes"]]
        counts = all(type(size) is int and size >= 0 for size in sizes) and len(sizes) > 1
        texts = all(isinstance(text, str) for text in (entry["dtype"], entry["sha256"]))
        if not (_NAME.fullmatch(name) and counts and texts):
            raise ValueError(f"expected sizes, a type and a checksum of array {name[:40]!r}")
    for part, entry in partitions.items():
        named = [*entry["arrays"].values(), entry["labels"], entry["index"]]
        if part not in _PARTS or any(name is not None and name not in arrays for name in named):
            raise ValueError(f"expected arrays that are there in partition {part[:40]!r}")
    if not all(isinstance(value, str) for value in options.values()):
        raise ValueError("expected texts as options")
    skipped = [entry[key] for entry in manifest.get("skipped", []) for key in ("file", "reason")]
    if not all(isinstance(text, str) for text in (*skipped, manifest.get("metamae", ""))):
        raise ValueError("expected names and reasons of skipped files")
    classes = manifest["facts"].get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("expected a list of names as classes")


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
            manifest = read_json(folder / MANIFEST)
            if manifest["format"] != FORMAT or manifest["name"] != source.name:
                raise ValueError(f"format {manifest['format']} of {manifest['name']}")
            check_manifest(manifest)
            prepared = cls(source, folder, manifest)
            for name, entry in manifest["arrays"].items():
                prepared._check_size(name, entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise DataError(
                f"expected a whole prepared set in {folder}, got a damaged or older one "
                f"({reason_of(fault)}); run: {command} --again"
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
        # The header is Python source, and what a changed byte makes of it has no common name.
        except Exception as fault:
            if entry["shape"][0]:
                raise DataError(
                    f"expected an array in {path}: {reason_of(fault)}; prepare again"
                ) from fault
            return np.zeros(entry["shape"], entry["dtype"])  # nothing to map
        if [*array.shape] != entry["shape"] or str(array.dtype) != entry["dtype"]:
            raise DataError(
                f"expected {path} with shape {entry['shape']} and type {entry['dtype']}, got "
                f"{[*array.shape]} and {array.dtype}; prepare again"
            )
        return array

    def refuse_changed(self) -> None:
        """Hold arrays against their checksums that were written to since the set was prepared.

        Which were is told by their times: an honest set is not read for it, one that was copied
        without its times is, once a process.

        Raises:
            DataError: naming an array with other bytes.
        """
        for name, entry in self.manifest["arrays"].items():
            path = self.folder / f"{name}.npy"
            state = path.stat()
            known = (path, state.st_ino, state.st_size, state.st_mtime_ns, entry["sha256"])
            if state.st_mtime_ns == entry.get("modified") or known in _VERIFIED:
                continue
            if sha256(path) != entry["sha256"]:
                raise DataError(
                    f"expected {path} with the checksum in its manifest, got other bytes; run: "
                    f"metamae data prepare {self.source.name} --data-dir "
                    f"{self.folder.parents[1]} --again"
                )
            _VERIFIED.add(known)

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
        try:
            parts = build(self, inputs)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            if isinstance(fault, MetamaeError):
                raise
            raise DataError(
                f"expected a whole prepared set in {self.folder}, got a manifest or indices that "
                f"do not fit ({type(fault).__name__}: {reason_of(fault)}); prepare it again"
            ) from fault
        task = source.task
        if "train" not in parts:  # prepared for pretraining alone
            task = None
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
