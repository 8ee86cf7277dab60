"""Records of an LMDB file whose values are pickled, read without running code from them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metamae.data.formats.archives import intact
from metamae.data.formats.libraries import need_module
from metamae.data.formats.limits import RECORD
from metamae.data.formats.unpickling import unpickle
from metamae.errors import DataError

COUNT = b"num_examples"
"""Key of how many records there are; the others are their numbers, as text."""


def lmdb_records(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """Records in the order of their numbers, one at a time.

    Args:
        path: The file ``data.mdb``.
        name: What it is called in an error.

    Raises:
        DataError: damage, a record that is missing, or one that would run code.
        MissingLibraryError: the library lmdb is not installed.
    """
    lmdb = need_module("lmdb")
    with (
        intact(name),
        lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1
        ) as environment,
        environment.begin() as transaction,
    ):
        count = _value(transaction, COUNT, name)
        if type(count) is not int:
            raise DataError(f"expected the number of records of {name}, got {type(count).__name__}")
        for number in range(count):
            record = _value(transaction, str(number).encode(), name)
            if not isinstance(record, dict):
                raise DataError(
                    f"expected a record with number {number} in {name}, got {type(record).__name__}"
                )
            yield record


def _value(transaction: Any, key: bytes, name: str) -> Any:
    content = transaction.get(key)
    if content is None:
        raise DataError(f"expected a record {key.decode()!r} in {name}, found none")
    if len(content) > RECORD:
        raise DataError(f"expected a record of at most {RECORD >> 20} MiB in {name}, got more")
    return unpickle(io.BytesIO(content), "a pickled record", f"{name}, {key.decode()}", table=False)
