"""Zip archives: their directory is held against what it lists, before anything is read of it.

The checksums of a zip are those of its members. Nothing protects the directory that lists them, and
Python's reader believes it: a changed byte there can hide a member, or rename it.
"""

from __future__ import annotations

import struct
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

from metamae.data.formats.limits import check_growth

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL = b"PK\x03\x04"
_TAIL = 22 + 0xFFFF
"""Bytes of the end record with the longest comment."""

_UTF8_NAME = 0x800


def check_directory(archive: ZipFile, file: IO[bytes]) -> None:
    """Hold the directory against its end record and against the header of every member.

    Args:
        archive: The archive, opened.
        file: The file it was opened from.

    Raises:
        BadZipFile: another number of entries than the end record says, another name than at the
            member itself, or bytes after the end.
        DataError: members that unpack to far more than the archive.
    """
    members = archive.infolist()
    declared, long = _declared_entries(file)
    if declared != (len(members) if long else len(members) % 0x10000):
        raise BadZipFile(f"its directory has {len(members)} entries, its end says {declared}")
    packed = file.seek(0, 2)
    check_growth(sum(info.file_size for info in members), packed, str(archive.filename or "a zip"))
    for info in sorted(members, key=lambda info: info.header_offset):
        _check_member(file, info)


def _check_member(file: IO[bytes], info: ZipInfo) -> None:
    file.seek(max(info.header_offset, 0))
    header = file.read(30)
    if len(header) < 30 or header[:4] != _LOCAL:
        raise BadZipFile(f"no member where its directory says {info.orig_filename!r} is")
    (length,) = struct.unpack("<H", header[26:28])
    encoding = "utf-8" if info.flag_bits & _UTF8_NAME else "cp437"
    name = file.read(length).decode(encoding, "replace")
    if name != info.orig_filename:
        raise BadZipFile(f"its directory calls {info.orig_filename!r} what is called {name!r}")


def _declared_entries(file: IO[bytes]) -> tuple[int, bool]:
    """How many members there are by the end record, and whether it is one for long lists."""
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL - 76, 0))
    tail = file.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise BadZipFile("it has no end record")
    count, comment = struct.unpack("<H", tail[place + 10 : place + 12])[0], tail[place + 20 :]
    (length,) = struct.unpack("<H", comment[:2])
    if tail[place + 22 + length :].strip(b"\0") or len(comment) < length + 2:
        raise BadZipFile("its end record does not lie at its end")
    locator = tail[max(place - 20, 0) : place]
    if not locator.startswith(_LOCATOR64):
        return count, False
    (where,) = struct.unpack("<Q", locator[8:16])
    file.seek(min(where, size))
    record = file.read(40)
    if record[:4] != _END64:  # something lies in front of the archive: the record is before us
        record = tail[place - 76 : place - 36]
    if len(record) < 40 or record[:4] != _END64:
        raise BadZipFile("its long end record is not where its end says")
    (long_count,) = struct.unpack("<Q", record[32:40])
    if count not in (0xFFFF, long_count % 0x10000):
        raise BadZipFile(f"its end records say {count} and {long_count} entries")
    return long_count, True
