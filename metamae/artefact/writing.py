"""Embeddings as files: arrays for programs, tables for people and spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.libraries import need_module
from metamae.errors import ConfigError, InputError
from metamae.files import replacing

_ROWS = 4096
"""Rows turned into text at once."""


def check_table(path: Path) -> None:
    """Raise unless the name of a file says how it is to be written, and that can be done.

    Raises:
        ConfigError: another ending.
        MissingLibraryError: Parquet without the extra ``tables``.
    """
    if path.suffix not in _WRITERS:
        raise ConfigError(
            f"expected a file ending in {', '.join(_WRITERS)} for embeddings, got {path.name!r}"
        )
    if path.suffix == ".parquet":
        need_module("pyarrow.parquet", "tables")


def write_embeddings(
    path: Path, embeddings: Array, ids: Sequence[str], labels: Sequence[str] | None = None
) -> None:
    """Write embeddings (N, D), or of tokens (N, L, D), in their order, atomically.

    Args:
        path: ``.npy`` holds the array alone; ``.csv`` and ``.parquet`` have a row for each example:
            ``id``, ``label`` where there are some, ``f0``, ``f1`` and so on.
        embeddings: float32 ``(N, D)``; ``(N, L, D)`` for ``.npy``. A CSV file gives every number
            in as many digits as give it back exactly.
        ids: Names of the rows.
        labels: Their labels.

    Raises:
        ConfigError: another ending.
        InputError: not as many ids or labels as rows.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from metamae.artefact.writing import write_embeddings
        >>> write_embeddings(Path("z.csv"), np.float32([[0.5, 0.1]]), ["first"])
        >>> Path("z.csv").read_text().splitlines()
        ['id,f0,f1', 'first,0.5,0.1']
    """
    check_table(path)
    counts = {"ids": len(ids)} | ({} if labels is None else {"labels": len(labels)})
    axes = (2, 3) if path.suffix == ".npy" else (2,)
    if embeddings.ndim not in axes or any(count != len(embeddings) for count in counts.values()):
        raise InputError(
            f"expected embeddings (N, D) with N names, got {embeddings.shape} and {counts}"
        )
    columns = {"id": list(ids)} | ({} if labels is None else {"label": list(labels)})
    with replacing(path) as temporary:
        _WRITERS[path.suffix](temporary, embeddings, columns)


def _write_npy(path: Path, embeddings: Array, columns: dict[str, list[str]]) -> None:
    with path.open("wb") as file:
        np.save(file, embeddings, allow_pickle=False)


def _write_csv(path: Path, embeddings: Array, columns: dict[str, list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *_names(embeddings)])
        for start in range(0, len(embeddings), _ROWS):
            rows = slice(start, start + _ROWS)
            texts = embeddings[rows].astype(str).tolist()
            names = zip(*(column[rows] for column in columns.values()), strict=True)
            writer.writerows([*name, *row] for name, row in zip(names, texts, strict=True))


def _write_parquet(path: Path, embeddings: Array, columns: dict[str, list[str]]) -> None:
    pyarrow: Any = need_module("pyarrow", "tables")
    parquet: Any = need_module("pyarrow.parquet", "tables")
    features = {
        name: np.ascontiguousarray(embeddings[:, n]) for n, name in enumerate(_names(embeddings))
    }
    parquet.write_table(pyarrow.table(columns | features), path)


def _names(embeddings: Array) -> list[str]:
    return [f"f{number}" for number in range(embeddings.shape[1])]


_WRITERS: dict[str, Callable[[Path, Array, dict[str, list[str]]], None]] = {
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
