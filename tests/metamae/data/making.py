"""Raw files put where a reader looks for them, and sets prepared from them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metamae import DataError
from metamae.data.dataset import Partition
from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared
from metamae.data.preparing.writer import Writer
from metamae.data.sources import get_source
from metamae.progress import Reporter
from tests.metamae.data.packing import as_json as as_json
from tests.metamae.data.packing import pack


def put(path: Path, members: Mapping[str, bytes] | bytes) -> Path:
    """Write a file, folder or archive, as its name says."""
    if not isinstance(members, bytes):
        return pack(members, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(members) if path.suffix == ".gz" else members)
    return path


def made(name: str, data_dir: Path, **settings: Any) -> Prepared:
    """Prepare a set; made ones are far smaller than the published."""
    return prepare(get_source(name), data_dir, **{"partial": True, **settings})


def skipping(name: str, data_dir: Path, message: str) -> tuple[Prepared, list[str]]:
    """A set with damage: refused with this message, then prepared without the files returned."""
    with pytest.raises(DataError, match=f"readable {message}"):
        made(name, data_dir)
    assert not list((data_dir / "prepared").iterdir())
    done = made(name, data_dir, on_error="skip")
    return done, [entry["file"] for entry in done.manifest["skipped"]]


def writing(folder: Path, on_error: str = "skip") -> Writer:
    return Writer(folder, on_error=on_error, reporter=Reporter(None))


def reds(rows: Partition) -> Any:
    """Mean red of every image, in bytes."""
    return rows.batch(slice(None))["image"][:, 0].mean((1, 2)) * 255
