"""Tar archives and what they are packed in, read so that nothing of them is lost in silence.

Python's tar reader takes a damaged header for the end of the archive, and when it reads a stream it
never looks at the checksum of gzip. Here a header that cannot be read is damage, and a packed
archive is read to its end, where the checksums are.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

from metamae.data.formats.limits import MEMBERS, check_growth, drain
from metamae.errors import DataError

_CHUNK, _BLOCK = 1 << 18, 1 << 14
_BZIP2, _XZ, _GZIP = b"BZh", b"\xfd7zXZ\0", b"\x1f\x8b"


class _Header(tarfile.TarInfo):
    """A header; one that cannot be read is no end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            info = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as fault:
            reason = str(fault) or "no end marker"
            raise tarfile.ReadError(f"{reason} at byte {archive.offset}") from fault
        if info.size < 0 or info.issparse():
            raise tarfile.ReadError(f"{info.name} has an impossible size, or holes")
        return info

    @classmethod
    def frombuffer(cls, *arguments: Any) -> Any:
        info = super().frombuffer(*arguments)  # type: ignore[misc]
        if info.size < 0:  # Python's reader would go back, and around for ever
            raise tarfile.HeaderError("negative size")
        return info


def is_packed(path: Path) -> bool:
    """Whether a file is compressed; its name may say so when it is not."""
    with path.open("rb") as file:
        return file.read(6).startswith((_BZIP2, _XZ, _GZIP))


def unpacking(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """What a file holds, unpacked while it is read; closes the file too.

    All streams of a file are read, and each is held against its checksums when its end is reached.
    A file that is not packed is handed back.

    Raises:
        DataError: when it unpacks to far more than it is, see ``limits``.
    """
    try:
        start = file.peek(6)[:6]
    except BaseException:
        file.close()
        raise
    if start.startswith(_GZIP):
        return io.BufferedReader(_Counted(gzip.GzipFile(fileobj=file), file, name), _CHUNK)
    for magic, make in ((_BZIP2, bz2.BZ2Decompressor), (_XZ, lzma.LZMADecompressor)):
        if start.startswith(magic):
            return io.BufferedReader(_Counted(_Streams(file, make), file, name), _CHUNK)
    return file


def members(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Headers of a tar archive in their order; they are not kept.

    Raises:
        DataError: more of them than any published archive has.
    """
    for _ in range(MEMBERS):
        if (info := archive.next()) is None:
            return
        yield info
        archive.members.clear()  # type: ignore[attr-defined]
    raise DataError(f"expected at most {MEMBERS} files in {name}, got more")


def walk_tar(
    file: IO[bytes], name: str
) -> Generator[tuple[tarfile.TarFile, tarfile.TarInfo], None, None]:
    """All members of a tar archive, from front to back and to the very end of the file."""
    with tarfile.open(fileobj=file, mode="r|", bufsize=_BLOCK, tarinfo=_Header) as archive:
        for info in members(archive, name):
            yield archive, info
    drain(file)


def seek_tar(file: IO[bytes]) -> tarfile.TarFile:
    """A tar archive that is not packed, read where one wants to."""
    return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)


def tar_contents(content: bytes, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Files of an archive inside an archive: their names without folders, and their content."""
    for archive, info in walk_tar(io.BytesIO(content), name):
        if info.isfile():
            yield info.name.rpartition("/")[2], open_member(archive, info)


def open_member(
    archive: tarfile.TarFile, info: tarfile.TarInfo, close: Callable[[], None] | None = None
) -> io.BufferedReader:
    """A member, read from front to back; ``close`` is called when it is closed."""
    return io.BufferedReader(_Member(archive, info, close))


class _Member(io.RawIOBase):
    """What tarfile hands out of a stream has no ``seekable``, which text readers ask for."""

    def __init__(
        self, archive: tarfile.TarFile, info: tarfile.TarInfo, close: Callable[[], None] | None
    ) -> None:
        file = archive.extractfile(info)
        assert file is not None
        self.file, self.then = file, close

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if self.then is not None:
            self.then()
        super().close()


class _Counted(io.RawIOBase):
    """Unpacked bytes, counted against those they come from."""

    def __init__(self, unpacked: Any, packed: io.BufferedReader, name: str) -> None:
        self.unpacked, self.packed, self.name = unpacked, packed, name
        self.count, self.size = 0, Path(name).stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.unpacked.readinto(buffer))
        self.count += count
        check_growth(self.count, self.size, self.name)
        return count

    def close(self) -> None:
        if not self.closed:
            self.unpacked.close()
            self.packed.close()
        super().close()


class _Streams(io.RawIOBase):
    """The streams of a .bz2 or .xz file, one after the other.

    Python's own readers take whatever follows a stream, and is no other, for its end: a damaged
    second stream would be lost.
    """

    def __init__(self, file: io.BufferedReader, make: Callable[[], Any]) -> None:
        self.file, self.make, self.machine = file, make, make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            packed = b""
            if self.machine.eof:
                packed = self._next_stream()
                if not packed:
                    return 0
                self.machine = self.make()
            elif self.machine.needs_input and not (packed := self.file.read(_CHUNK)):
                raise EOFError("it ends before its last stream does")
            content = self.machine.decompress(packed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _next_stream(self) -> bytes:
        """What follows a stream and its padding of zeros."""
        rest: bytes = self.machine.unused_data.lstrip(b"\0")
        while not rest and (more := self.file.read(_CHUNK)):
            rest = more.lstrip(b"\0")
        return rest
