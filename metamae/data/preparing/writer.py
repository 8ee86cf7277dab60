"""Writing a prepared set: arrays grow row by row on disk, and appear only when all is complete."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from metamae.data.dataset import Array, PartitionName
from metamae.errors import DataError, MetamaeError, MissingLibraryError
from metamae.files import naming
from metamae.progress import Reporter

_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
_BUFFER = 1 << 20


class RowWriter:
    """A .npy file that rows are appended to, in constant memory.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from metamae.data.preparing.writer import RowWriter
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "x.npy"
        ...     rows = RowWriter(path, (3,), np.float32)
        ...     rows.append([1, 2, 3])
        ...     rows.extend(np.zeros((4, 3)))
        ...     rows.close()
        ...     np.load(path).shape
        (5, 3)
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: DTypeLike) -> None:
        """Start a file of rows of one shape."""
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.rows = 0
        self.file: IO[bytes] = path.open("wb", buffering=_BUFFER)
        self._header(0)
        self.start = self.file.tell()

    def append(self, row: Any) -> None:
        """Add one row."""
        self.extend(np.asarray(row)[np.newaxis])

    def extend(self, rows: Any) -> None:
        """Add rows ``(n, *shape)``.

        Raises:
            DataError: rows of another shape, or values that the array's type cannot hold.
        """
        values = np.asarray(rows)
        if values.shape[1:] != self.shape:
            raise DataError(
                f"expected rows of shape {self.shape} in {self.path.stem}, got {values.shape[1:]}"
            )
        if self.dtype.kind in "iu" and values.size:
            limits = np.iinfo(self.dtype)
            low, high = values.min(), values.max()
            if low < limits.min or high > limits.max:
                raise DataError(f"expected values that fit {self.dtype}, got {low} to {high}")
        try:
            self.file.write(np.ascontiguousarray(values, self.dtype).data)
        except OSError as fault:
            fault.filename = fault.filename or str(self.path)
            raise
        self.rows += len(values)

    def close(self) -> None:
        """Complete the header with the number of rows."""
        with naming(self.path):
            self.file.seek(0)
            self._header(self.rows)
            assert self.file.tell() == self.start  # NumPy keeps room for the first axis to grow
            self.file.close()

    def _header(self, rows: int) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


class Writer:
    """What a reader writes to: arrays, partitions, notes, and the files it had to skip."""

    def __init__(self, folder: Path, *, on_error: str, reporter: Reporter) -> None:
        """Write into a folder that exists."""
        self.folder, self.on_error, self.reporter = folder, on_error, reporter
        self.arrays: dict[str, RowWriter] = {}
        self.partitions: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self.skipped: list[dict[str, str]] = []

    def __enter__(self) -> Writer:
        """Files are closed at the end of the block, complete or not, whatever happens in it."""
        return self

    def __exit__(self, *_: object) -> None:
        for array in self.arrays.values():
            with suppress(OSError):  # a full disk: whoever wrote has said so
                array.file.close()

    def array(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> RowWriter:
        """Start a named array of rows; closed by the writer."""
        if name in self.arrays:
            raise AssertionError(f"array {name!r} is started twice")
        self.arrays[name] = RowWriter(self.folder / f"{name}.npy", shape, dtype)
        return self.arrays[name]

    def save(self, name: str, values: Array) -> str:
        """Write a whole array at once; returns its name."""
        self.array(name, values.shape[1:], values.dtype).extend(values)
        return name

    def partition(
        self,
        part: PartitionName,
        arrays: Mapping[str, str],
        *,
        labels: str | None = None,
        index: Array | None = None,
    ) -> None:
        """Declare a partition: input name to array name, labels' array name, and which rows."""
        chosen = None if index is None else self.save(f"{part}_index", np.asarray(index, np.int64))
        self.partitions[part] = {"arrays": dict(arrays), "labels": labels, "index": chosen}

    def probe(self, arrays: Mapping[str, str], labels: str, train: Array, test: Array) -> None:
        """Declare both labelled partitions, which are rows of the same arrays."""
        self.partition("train", arrays, labels=labels, index=train)
        self.partition("test", arrays, labels=labels, index=test)

    def count(self, name: str) -> int | None:
        """Rows of a partition or an array; ``None`` where there is none of the name."""
        if name in self.partitions:
            entry = self.partitions[name]
            name = entry["index"] or next(iter(entry["arrays"].values()))
        return self.arrays[name].rows if name in self.arrays else None

    def note(self, **facts: Any) -> None:
        """Keep facts that opening the set needs, such as a label map (JSON values)."""
        self.facts |= facts

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Read one file or record: if that fails, stop with its name, or skip and count it.

        Whatever the decoder raises is taken as damage; a full or read-only disk and errors of
        another kind (a missing library) are not.
        """
        try:
            yield
        except Exception as fault:
            mine = isinstance(fault, MetamaeError) and not isinstance(fault, DataError)
            storage = isinstance(fault, OSError) and fault.errno in _STORAGE
            if mine or storage or isinstance(fault, MemoryError | MissingLibraryError):
                raise
            reason = " ".join(str(fault).split()) or type(fault).__name__
            if self.on_error != "skip":
                raise DataError(
                    f"expected a readable {name}: {reason}; "
                    "mend it, or leave such files out with --on-error skip"
                ) from fault
            self.skipped.append({"file": name, "reason": reason})

    def close(self) -> Facts:
        """Complete all arrays and return the notes.

        Raises:
            DataError: a partition without rows.
        """
        for array in self.arrays.values():
            array.close()
        for part, entry in self.partitions.items():
            names = [entry["index"]] if entry["index"] else list(entry["arrays"].values())
            if not all(self.arrays[name].rows for name in names):
                raise DataError(
                    f"expected examples for the {part} partition, found none"
                    + (f" ({len(self.skipped)} skipped)" if self.skipped else "")
                    + "; check that the files are the published ones"
                )
        return self.facts


Facts = Mapping[str, Any]
"""What a reader noted in the manifest for opening the set: label maps, segments, ..."""
