"""Prepared sets: memory-mapped arrays with a manifest, made once from the raw files.

``DATA_DIR/prepared/NAME/`` holds one ``.npy`` per array and ``manifest.json``. It is made under a
temporary name and renamed when complete, so it is either whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import metamae
from metamae.checkpoint import write_json
from metamae.data.archives import intact
from metamae.data.dataset import Array, Dataset, Partition, Rows, Selected
from metamae.data.source import Raw, Source
from metamae.data.writer import Writer
from metamae.errors import ConfigError, DataError
from metamae.inputs import Inputs
from metamae.progress import Reporter, Stage

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
            made = cls(source, folder, manifest)
            for name, told in manifest["arrays"].items():
                made._check_size(name, told)
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise DataError(
                f"expected a whole prepared set in {folder}, got a damaged or older one "
                f"({fault}); run: {command} --again"
            ) from fault
        return made

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
        told = self.manifest["arrays"][name]
        path = self.folder / f"{name}.npy"
        try:
            found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as fault:
            if told["shape"][0]:
                raise DataError(f"expected an array in {path}: {fault}; prepare again") from fault
            return np.zeros(told["shape"], told["dtype"])  # nothing to map
        if [*found.shape] != told["shape"] or str(found.dtype) != told["dtype"]:
            raise DataError(
                f"expected {path} with shape {told['shape']} and type {told['dtype']}, got "
                f"{[*found.shape]} and {found.dtype}; prepare again"
            )
        return found

    def verify(self, reporter: Reporter | None = None) -> list[str]:
        """Compare the checksum of every array; returns the names of damaged ones."""
        arrays = self.manifest["arrays"]
        stage = (reporter or Reporter(None)).stage("checksums", total=len(arrays), unit="files")
        damaged = []
        with stage as bar:
            for name, told in arrays.items():
                if sha256(self.folder / f"{name}.npy") != told["sha256"]:
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
            part: self._partition(told, inputs)
            for part, told in self.manifest["partitions"].items()
        }

    def _partition(self, told: Mapping[str, Any], inputs: Inputs) -> Partition:
        index = None if told["index"] is None else self.array(told["index"])

        def rows(name: str) -> Rows:
            whole = self.array(name)
            return whole if index is None else Selected(whole, index)

        labels = None if told["labels"] is None else np.asarray(rows(told["labels"])[:])
        return Partition(
            arrays={spec.name: rows(told["arrays"][spec.name]) for spec in inputs},
            inputs=inputs,
            scaling=self.source.scaling,
            labels=labels
            if labels is None or labels.dtype.kind == "f"
            else labels.astype(np.int64),
        )

    def _check_size(self, name: str, told: Mapping[str, Any]) -> None:
        size = (self.folder / f"{name}.npy").stat().st_size
        if size != told["bytes"]:
            raise ValueError(f"{name}.npy has {size} bytes instead of {told['bytes']}")


def prepare(
    source: Source,
    data_dir: Path,
    *,
    options: Mapping[str, str] | None = None,
    on_error: str = "fail",
    again: bool = False,
    reporter: Reporter | None = None,
) -> Prepared:
    """Read the raw files of a set and leave its prepared form, unless it is there already.

    Args:
        source: Which set.
        data_dir: Folder with the raw files; the prepared form goes to ``prepared/`` in it.
        options: Options of the set; defaults for the others.
        on_error: ``fail`` stops at the first unreadable file; ``skip`` leaves such files out, and
            names them in the manifest.
        again: Prepare anew even if it is there.
        reporter: Shows progress; silent by default.

    Raises:
        DataError: missing or damaged raw files; the message says which.
        ConfigError: unknown options, or a set that was prepared with others.
        MissingLibraryError: an optional library is needed.
    """
    reporter = reporter or Reporter(None)
    resolved = source.resolve(options or {})
    folder = folder_of(source, data_dir)
    if folder.is_dir() and not again:
        return _keep(Prepared.open(source, data_dir), resolved)
    layout, paths = source.locate(data_dir)
    _clear_leftovers(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{source.name}."))
    writer = Writer(temporary, on_error=on_error, reporter=reporter)
    try:
        raw = Raw(layout=layout.name, paths=paths, options=resolved, reporter=reporter)
        with Writer(temporary, on_error=on_error, reporter=reporter) as writer:
            with intact(", ".join(str(path) for path in paths.values())):
                source.prepare(raw, writer)
            facts = writer.close()
        manifest = {
            "format": FORMAT,
            "name": source.name,
            "metamae": metamae.__version__,
            "layout": layout.name,
            "options": resolved,
            "on_error": on_error,
            "sources": _describe_sources(paths, reporter),
            "skipped": writer.skipped,
            "partitions": writer.partitions,
            "arrays": _describe_arrays(writer, reporter),
            "facts": facts,
        }
        write_json(temporary / MANIFEST, manifest)
        os.chmod(temporary, 0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        writer.abandon()
        shutil.rmtree(temporary, ignore_errors=True)
    return Prepared.open(source, data_dir)


def _keep(found: Prepared, options: Mapping[str, str]) -> Prepared:
    if found.options == options:
        return found
    asked = ", ".join(f"{name}={value}" for name, value in options.items())
    made = ", ".join(f"{name}={value}" for name, value in found.options.items())
    raise ConfigError(
        f"expected {found.source.name!r} to be prepared with {asked}, it was made with {made}; "
        "add --again to make it anew"
    )


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed preparation of the same set left behind."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _describe_arrays(writer: Writer, reporter: Reporter) -> dict[str, dict[str, Any]]:
    told = {}
    with reporter.stage("checksums", total=len(writer.arrays), unit="files") as stage:
        for name, array in writer.arrays.items():
            told[name] = {
                "shape": [array.rows, *array.shape],
                "dtype": str(array.dtype),
                "bytes": array.path.stat().st_size,
                "sha256": sha256(array.path),
            }
            stage.advance()
    return told


def _describe_sources(paths: Mapping[str, Path], reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each raw file; of a folder, over its files' names and contents."""
    files = {role: _files(path) for role, path in paths.items()}
    total = sum(len(found) for found in files.values())
    told = {}
    with reporter.stage("checksums of raw files", total=total, unit="files") as stage:
        for role, path in paths.items():
            told[role] = {
                "path": str(path),
                "files": len(files[role]),
                "bytes": sum(file.stat().st_size for file in files[role]),
                "sha256": _digest(path, files[role], stage),
            }
    return told


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _digest(path: Path, files: Sequence[Path], stage: Stage) -> str:
    whole = hashlib.sha256()
    for file in files:
        digest = sha256(file)
        stage.advance()
        if file == path:
            return digest
        whole.update(f"{file.relative_to(path).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
