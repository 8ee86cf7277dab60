"""Lists inside large JSON files, read record by record."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from metamae.errors import DataError

_CHUNK = 1 << 20
_GAP = re.compile(r"[\s,]*")


def json_records(file: IO[bytes], key: str, name: str) -> Iterator[dict[str, Any]]:
    """Records of the list under one key of a JSON object, one at a time.

    Annotation files of half a gigabyte would take several in memory as a whole.

    Args:
        file: The JSON file.
        key: The list's key. A key of the same name that holds no list is passed over.
        name: What the file is called in an error.

    Raises:
        DataError: no such list, or a file that is cut short.
    """
    decoder, letters = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    start, kept = re.compile(rf'"{re.escape(key)}"\s*:\s*\['), ""
    while (found := start.search(kept)) is None:
        if not (more := file.read(_CHUNK)):
            raise DataError(f"expected a list {key!r} in {name}, found none")
        # What is kept of the text so far may hold the beginning of the key.
        kept = kept[-len(key) - 64 :] + letters.decode(more)
    place = found.end()
    while True:
        place = _GAP.match(kept, place).end()  # type: ignore[union-attr]  # it matches nothing too
        if kept.startswith("]", place):
            return
        try:
            record, place = decoder.raw_decode(kept, place)
        except ValueError as fault:
            if not (more := file.read(_CHUNK)):
                raise DataError(f"expected a complete list {key!r} in {name}: {fault}") from fault
            kept, place = kept[place:] + letters.decode(more), 0
            continue
        yield record
