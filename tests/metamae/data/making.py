"""Tiny archives in the published layouts, made where a test runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared
from metamae.data.sources import get_source
from tests.metamae.data.packing import pack


def put(path: Path, members: Mapping[str, bytes] | bytes) -> Path:
    """Write a file, folder or archive, as its name says."""
    if not isinstance(members, bytes):
        return pack(members, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(members) if path.suffix == ".gz" else members)
    return path


def made(name: str, data_dir: Path, **settings: Any) -> Prepared:
    """Prepare a set."""
    return prepare(get_source(name), data_dir, **settings)


def as_json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records).encode()
