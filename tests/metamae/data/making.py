"""Tiny archives in the published layouts, made where a test runs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamae.data.prepared import Prepared, prepare
from metamae.data.sources import get_source


def put(path: Path, members: Mapping[str, bytes] | bytes) -> Path:
    """Write a file, folder or archive, as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(members, bytes):
        path.write_bytes(gzip.compress(members) if path.suffix == ".gz" else members)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    elif path.name.endswith(".tar.gz"):
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        for name, content in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def made(name: str, data_dir: Path, **settings: Any) -> Prepared:
    """Prepare a set."""
    return prepare(get_source(name), data_dir, **settings)


def as_json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records).encode()
