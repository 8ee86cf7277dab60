"""Pictures in Parquet files as the hub of Hugging Face keeps them: one a row, with its label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamae.data.formats.archives import intact
from metamae.data.formats.libraries import need_module
from metamae.data.formats.limits import WHOLE
from metamae.errors import DataError

IMAGES, LABELS = ("image", "img"), ("label", "labels")
"""Names of the two columns."""
_ROWS = 64


@dataclass(frozen=True)
class PictureRow:
    """A row.

    Attributes:
        content: The encoded picture.
        path: Its file's name where it came from; empty where the file does not say.
        label: Its class.
    """

    content: bytes
    path: str
    label: int


def picture_rows(path: Path) -> Iterator[PictureRow]:
    """Rows in their order, a few at a time.

    Raises:
        DataError: damage, or other columns.
        MissingLibraryError: the library pyarrow is not installed.
    """
    with _opened(path) as file:
        image, label = (_column(file, names, path) for names in (IMAGES, LABELS))
        for batch in file.iter_batches(batch_size=_ROWS, columns=[image, label]):
            for row in batch.to_pylist():
                yield _row(row[image], row[label], path)


def class_names(path: Path) -> tuple[str, ...]:
    """Names of the classes by label, which the hub's own files keep; empty in others.

    Raises:
        DataError: damage.
        MissingLibraryError: the library pyarrow is not installed.
    """
    with _opened(path) as file:
        kept = (file.schema_arrow.metadata or {}).get(b"huggingface")
        label = _column(file, LABELS, path)
    try:
        names = json.loads(kept or b"{}")["info"]["features"][label]["names"]
    except (ValueError, LookupError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of rows; damage names it."""
    parquet = need_module("pyarrow.parquet")
    with intact(path), parquet.ParquetFile(path) as file:
        yield file


def _column(file: Any, names: tuple[str, ...], path: Path) -> str:
    known = file.schema_arrow.names
    found = [name for name in names if name in known]
    if not found:
        raise DataError(
            f"expected a column {' or '.join(names)} in {path}, got {', '.join(known) or 'none'}"
        )
    return found[0]


def _row(image: Any, label: Any, path: Path) -> PictureRow:
    fields = image if isinstance(image, dict) else {"bytes": image}
    content, name = fields.get("bytes"), fields.get("path")
    if not isinstance(content, bytes) or len(content) > WHOLE or type(label) is not int:
        raise DataError(
            f"expected pictures in bytes and whole numbers as labels in {path}, got "
            f"{type(content).__name__} and {type(label).__name__}"
        )
    return PictureRow(content, str(name or ""), label)
