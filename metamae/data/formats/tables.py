"""Records of large text files, one at a time: JSON lists, CSV and tab-separated tables."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from metamae.data.formats.limits import LINE, RECORD
from metamae.errors import DataError, MetamaeError, reason_of, shown

_CHUNK = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n,]*")


def json_records(file: IO[bytes], name: str, *, key: str | None = None) -> Iterator[dict[str, Any]]:
    """Objects of a JSON list, decoded one by one in constant memory.

    Args:
        file: A file with one list of objects, or an object that holds the list.
        name: Named in errors.
        key: Key of the list, which may lie anywhere in the file; a key of the same name that holds
            no list is passed over. Without one the file is the list.

    Raises:
        DataError: no such list, damage, or a file that ends early; the message counts the
            records before it.

    Example:
        >>> import io
        >>> from metamae.data.formats.tables import json_records
        >>> list(json_records(io.BytesIO(b'[{"a": 1}, {"a": 2}]'), "x.json"))
        [{'a': 1}, {'a': 2}]
        >>> list(json_records(io.BytesIO(b'{"n": 1, "rows": [{"a": 1}]}'), "x.json", key="rows"))
        [{'a': 1}]
    """
    with io.TextIOWrapper(file, encoding="utf-8") as text, _readable(name):
        buffer, place = _top(text, name) if key is None else _under(text, key, name)
        rest = yield from _list_items(text, buffer, place, name)
        _finish(text, rest, key, name)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Name a text that is no UTF-8, and what the readers of JSON and CSV raise of their own."""
    try:
        yield
    except (UnicodeDecodeError, csv.Error, RecursionError, ValueError) as fault:
        if isinstance(fault, MetamaeError):
            raise
        deep = "it is nested too deeply"
        reason = deep if isinstance(fault, RecursionError) else reason_of(fault)
        raise DataError(f"expected a whole table {name}: {reason}; fetch the file again") from fault


def _finish(text: io.TextIOWrapper, rest: str, key: str | None, name: str) -> None:
    """Read to the end, where an archive has its checksum; nothing follows a list that is all."""
    after = rest.lstrip()
    while not after and (more := text.read(_CHUNK)):
        after = more.lstrip()
    if after and (key is None or after[0] not in ",}"):
        raise DataError(
            f"expected the end of the list in {name}, got {after[:20]!r}; fetch the file again"
        )
    while text.read(_CHUNK):
        pass


def _top(text: io.TextIOWrapper, name: str) -> tuple[str, int]:
    """What was read of a file that is a list, and where its first item begins."""
    buffer = text.read(_CHUNK)
    while buffer.isspace():
        buffer = text.read(_CHUNK)
    place = _skip(buffer, 0) + 1
    if buffer[place - 1 : place] != "[":
        raise DataError(f"expected a JSON list in {name}, got {buffer[:20]!r}")
    return buffer, place


def _under(text: io.TextIOWrapper, key: str, name: str) -> tuple[str, int]:
    """The end of what was read up to the list of a key, and where its first item begins."""
    start, buffer = re.compile(rf'"{re.escape(key)}"\s*:\s*\['), ""
    while (match := start.search(buffer)) is None:
        if not (more := text.read(_CHUNK)):
            raise DataError(f"expected a list {key!r} in {name}, found none")
        # The end of the text so far may hold the beginning of the key.
        buffer = buffer[-len(key) - 64 :] + more
    return buffer, match.end()


def _list_items(
    text: io.TextIOWrapper, buffer: str, place: int, name: str
) -> Generator[dict[str, Any], None, str]:
    """Items of a list; returns what was read beyond it."""
    decoder, count = json.JSONDecoder(), 0
    while True:
        place = _skip(buffer, place)
        try:
            if buffer[place : place + 1] == "]":
                return buffer[place + 1 :]
            record, place = decoder.raw_decode(buffer, place)
        except json.JSONDecodeError as fault:
            more = text.read(max(_CHUNK, len(buffer) - place))  # doubling: linear in all
            if not more:
                raise DataError(
                    f"expected a whole JSON list in {name}, it breaks after {count} records "
                    f"({fault.msg}); fetch the file again"
                ) from fault
            buffer, place = buffer[place:] + more, 0
            if len(buffer) > RECORD + 2 * _CHUNK:
                raise DataError(
                    f"expected records of at most {RECORD >> 20} MiB in {name}, number "
                    f"{count + 1} is longer, or damaged; fetch the file again"
                ) from fault
            continue
        if not isinstance(record, dict):
            raise DataError(
                f"expected objects in {name}, got {shown(record)} as number {count + 1}"
            )
        count += 1
        yield record


def _skip(buffer: str, place: int) -> int:
    blanks = _BLANKS.match(buffer, place)
    assert blanks is not None
    return blanks.end()


def bounded_lines(text: IO[Any], name: str, limit: int = LINE) -> Iterator[Any]:
    r"""Lines of a text or of bytes, none of them longer than a limit.

    Raises:
        DataError: a longer line; the message has its number.

    Example:
        >>> import io
        >>> from metamae.data.formats.tables import bounded_lines
        >>> list(bounded_lines(io.StringIO("a\nb"), "x.csv"))
        ['a\n', 'b']
    """
    number = 0
    while line := text.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataError(
                f"expected lines of at most {limit} characters in {name}, number {number} is "
                "longer; check that it is the published file"
            )
        yield line


def table_records(
    file: IO[bytes], name: str, columns: Sequence[str], delimiter: str = ","
) -> Iterator[dict[str, str]]:
    r"""Rows of a table with a header, as dicts; more columns than asked for are left alone.

    Raises:
        DataError: a missing column, or a row with another number of cells.

    Example:
        >>> import io
        >>> from metamae.data.formats.tables import table_records
        >>> list(table_records(io.BytesIO(b",seq,label\n0,ACGT,3\n"), "x.csv", ["seq"]))
        [{'seq': 'ACGT'}]
    """
    csv.field_size_limit(RECORD)
    with io.TextIOWrapper(file, encoding="utf-8", newline="") as text, _readable(name):
        yield from _table_rows(
            csv.reader(bounded_lines(text, name), delimiter=delimiter), name, columns
        )


def _table_rows(rows: Any, name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    header: list[str] = next(rows, [])
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(
            f"expected columns {', '.join(columns)} in {name}, got {', '.join(header) or 'none'}; "
            "check that it is the published file"
        )
    places = [header.index(column) for column in columns]
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"expected {len(header)} cells in line {rows.line_num} of {name}, got {len(row)}; "
                "fetch the file again"
            )
        yield {column: row[place] for column, place in zip(columns, places, strict=True)}


def plain_text(cell: str) -> str:
    """A cell without the bytes-literal marks (``b'...'``) that some tables were written with.

    Example:
        >>> from metamae.data.formats.tables import plain_text
        >>> plain_text("b'ACGT'"), plain_text("ACGT")
        ('ACGT', 'ACGT')
    """
    marked = len(cell) > 2 and cell[0] == "b" and cell[1] in "'\"" and cell[-1] == cell[1]
    return cell[2:-1] if marked else cell
