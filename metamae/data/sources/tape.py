"""Records of the protein sets: of either of TAPE's archives, or of the benchmark's tables."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from metamae.data.formats.libraries import need_module
from metamae.data.formats.lmdbs import lmdb_records
from metamae.data.formats.tables import json_records, table_records
from metamae.data.preparing.raw import Raw
from metamae.errors import DataError, MissingLibraryError

_GLANCED = 100
"""Files of an archive by which the two are told apart; they have the same name."""

Records = Iterable[Mapping[str, Any]]


def members(
    raw: Raw, files: Mapping[str, str], field: str
) -> Generator[tuple[str, str, Records], None, None]:
    """Key, name and records of each file: of one of TAPE's two archives, or tables by role."""
    if "archive" not in raw.paths:
        for key in files:
            with raw.open(key) as file:
                name = raw.paths[key].name
                yield key, name, table_records(file, name, ("primary", field))
        return
    bundle = raw.bundle("archive")
    names = bundle.first_names(_GLANCED)
    if not any(name.endswith(".json") for name in names) and any(".lmdb/" in n for n in names):
        try:
            need_module("lmdb")
        except MissingLibraryError as fault:
            raise MissingLibraryError(
                f"{fault}; or get the same as JSON: data_raw_pytorch/{bundle.path.name} of TAPE"
            ) from fault
        for key, stem in files.items():
            name = f"{stem}.lmdb/data.mdb"
            yield key, name, lmdb_records(raw.extract(bundle, bundle.one(name)), name)
        return
    yield from _json_members(raw, files)


def _json_members(
    raw: Raw, files: Mapping[str, str]
) -> Generator[tuple[str, str, Records], None, None]:
    """In one pass over the archive."""
    left = {f"{stem}.json": key for key, stem in files.items()}
    for name, file in raw.walk("archive", "*.json"):
        base = name.rsplit("/", 1)[-1]
        if base in left:  # on to the end of the archive, where its checksum is
            yield left.pop(base), name, json_records(file, name)
    if left:
        raise DataError(
            f"expected {', '.join(left)} in {raw.paths['archive']}, found none; "
            "check that the archive is the published one"
        )
