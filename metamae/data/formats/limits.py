"""How much a raw file may become: far above the published sets, far below what ends a machine.

An archive of a few kilobytes can unpack to terabytes. The largest published sets unpack to about
thirteen times their size (wafer maps), the largest file that is read whole has 300 MB (a class of
full-size ImageNet), the largest list 281,241 files (LibriSpeech).
"""

from __future__ import annotations

from typing import IO, Any

from metamae.errors import DataError

GROWTH, FREE = 200, 1 << 30
"""An archive may unpack to 1 GiB, or to 200 times its size if that is more."""

MEMBERS = 4_000_000
"""Files in an archive."""

WHOLE = 1 << 28
"""Bytes of a picture, a sound or a table that is read whole: 256 MiB."""

CLASS_ARCHIVE = 1 << 31
"""Bytes of an archive inside an archive: 2 GiB."""

LINE = 1 << 24
"""Characters of a line of numbers: 16 MiB."""

RECORD = 1 << 26
"""Characters of a record of a JSON list: 64 MiB."""


def check_growth(unpacked: int, packed: int, name: str) -> None:
    """Refuse an archive that becomes far more than it is.

    Raises:
        DataError: it does; the message has the limit.
    """
    if unpacked > max(FREE, GROWTH * packed):
        raise DataError(
            f"expected {name} of {packed} bytes to unpack to at most {GROWTH} times its size (or "
            f"{FREE >> 20} MiB), got {unpacked} bytes or more: no published set does; unpack it "
            "yourself where you trust it, and put the folder in its place"
        )


def read_whole(file: IO[bytes], name: str, limit: int = WHOLE) -> bytes:
    """The rest of a file that is read into memory.

    Raises:
        DataError: more bytes than the limit.

    Example:
        >>> import io
        >>> from metamae.data.formats.limits import read_whole
        >>> read_whole(io.BytesIO(b"abc"), "x")
        b'abc'
    """
    parts, size = [], 0
    while part := file.read(1 << 20):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise DataError(f"expected at most {limit >> 20} MiB in {name}, got more")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def drain(file: IO[bytes] | Any) -> None:
    """Read a file to its end, where its checksum is."""
    while file.read(1 << 18):
        pass
