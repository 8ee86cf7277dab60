"""From a path or an object to what was read: a frame, arrays, or a folder of files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from metamae.data.own import arrays, frames
from metamae.data.own.arrays import Arrays, as_arrays, read_arrays
from metamae.data.own.folders import PICTURES, SOUNDS, Folder, list_folder
from metamae.data.own.frames import Frame, as_frame, is_frame, read_frame
from metamae.data.pocket import POCKET
from metamae.data.sources import SOURCES
from metamae.errors import DataError, suggest

Source: TypeAlias = str | Path | np.ndarray | Mapping[str, np.ndarray] | Any
"""A path, an array, a data frame, or arrays by name."""

HOW = (
    "a path to your own data: .csv, .tsv, .parquet, .npy, .npz, or a folder of pictures "
    "(.png, .jpg, ...) or sounds (.wav, .flac)"
)
"""What may stand where a data set's name stands."""


def read_source(source: Source, *, kind: str = "auto", skip_bad: bool = False) -> Any:
    """Read a :class:`Frame`, :class:`Arrays` or a :class:`Folder`.

    Raises:
        DataError: nothing is there, it is of no known kind, or it is damaged.
    """
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source), kind, skip_bad)
    if isinstance(source, np.ndarray):
        return as_arrays({"x": source}, "the array")
    if is_frame(source):
        return as_frame(source, "the data frame")
    if isinstance(source, Mapping):
        return as_arrays(source, "the arrays")
    raise DataError(
        f"expected {HOW}, an array, a data frame or arrays by name, got {type(source).__name__}"
    )


def _read_path(path: Path, kind: str, skip_bad: bool) -> Frame | Arrays | Folder:
    if path.is_dir():
        return list_folder(path, kind, skip_bad=skip_bad)
    if not path.exists():
        near = os.listdir(path.parent) if path.parent.is_dir() else []
        raise DataError(f"expected a file or a folder at {path.parent}, {suggest(path.name, near)}")
    suffix = path.suffix.lower()
    if suffix in frames.SUFFIXES:
        return read_frame(path)
    if suffix in arrays.SUFFIXES:
        return read_arrays(path)
    if suffix in (*PICTURES, *SOUNDS):  # one file is a folder of one
        return Folder(
            path.parent, "image" if suffix in PICTURES else "audio", (path.name,), skip_bad
        )
    raise DataError(f"expected {HOW}, got {path.name!r}")


def is_path(name: str) -> bool:
    """Whether a text means own data rather than a data set by name.

    Example:
        >>> from metamae.data.own.sources import is_path
        >>> is_path("sensors"), is_path("my/data.csv"), is_path("folder/"), is_path("")
        (False, True, True, False)
    """
    if not name or name in POCKET or name in SOURCES:
        return False
    known = (*frames.SUFFIXES, *arrays.SUFFIXES)
    return "/" in name or os.sep in name or Path(name).suffix in known or Path(name).exists()


def name_of(source: Source) -> str:
    """A name fit for folders, which no data set by name has.

    Example:
        >>> from metamae.data.own.sources import name_of
        >>> name_of("some/My data (2).csv"), name_of("digits.npz")
        ('My-data-2', 'own-digits')
    """
    if not isinstance(source, str | os.PathLike):
        return "data"
    path = Path(source)
    if not path.name or path.name == "..":
        path = path.resolve()
    stem = path.name if path.is_dir() else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "data"
    return f"own-{name}" if name in POCKET or name in SOURCES else name
