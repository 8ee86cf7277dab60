"""Raw files, wherever they lie: in a folder, a .zip, a .tar(.gz), or alone and perhaps gzipped.

A reader asks for members by name or pattern and never learns what they were packed in.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from metamae.errors import DataError

DAMAGE = (EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What the standard library raises on a truncated or damaged archive."""

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Bundle(ABC):
    """A set of named files.

    Names are relative, with ``/`` between their parts. Patterns are shell patterns matched against
    the whole name and against every tail of it, so ``Protocol/*.dat`` finds the files whatever
    folders the archive puts in front.
    """

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        """See :func:`open_bundle`."""
        self.path, self.on_read = path, on_read

    def base(self) -> io.BufferedReader:
        """The file itself, its reading watched."""
        return io.BufferedReader(_Watched(self.path, self.on_read), 1 << 18)

    @abstractmethod
    def names(self) -> list[str]:
        """All names, sorted."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open one member for reading."""

    def walk(self, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
        """Matching members and their content, in the order that is cheap to read: by name."""
        for name in self.match(pattern):
            with self.open(name) as file:
                yield name, file

    def match(self, pattern: str) -> list[str]:
        """Names that match a pattern, sorted."""
        return [name for name in self.names() if matches(name, pattern)]

    def one(self, pattern: str) -> str:
        """The single name that matches.

        Raises:
            DataError: none or several match.
        """
        names = self.match(pattern)
        if len(names) != 1:
            what = f"{len(names)} ({', '.join(names[:3])})" if names else "none"
            raise DataError(
                f"expected one file {pattern} in {self.path}, found {what}; "
                "check that the archive is complete and is the published one"
            )
        return names[0]


def matches(name: str, pattern: str) -> bool:
    """Whether a name, or any tail of it after a ``/``, matches a shell pattern.

    Example:
        >>> from metamae.data.formats.archives import matches
        >>> matches("PAMAP2_Dataset/Protocol/subject101.dat", "Protocol/subject*.dat")
        True
        >>> matches("MyProtocol/subject101.dat", "Protocol/subject*.dat")
        False
    """
    parts = name.split("/")
    wanted = pattern.count("/") + 1
    tail = parts[-wanted:]
    return len(tail) == wanted and all(
        fnmatchcase(part, glob) for part, glob in zip(tail, pattern.split("/"), strict=True)
    )


class Folder(Bundle):
    """An unpacked folder."""

    def names(self) -> list[str]:
        """All files below the folder, but hidden ones."""
        paths = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(str(p.as_posix()) for p in paths if not p.name.startswith("."))

    def open(self, name: str) -> IO[bytes]:
        """Open a file below the folder."""
        return (self.path / name).open("rb")


class Zip(Bundle):
    """A .zip archive."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        """Read the archive's directory."""
        super().__init__(path, on_read)
        self.file = self.base()
        try:
            self.archive = zipfile.ZipFile(self.file)
        except DAMAGE:
            self.file.close()
            raise

    def __del__(self) -> None:
        """Close the archive; the bundle has to outlive its open members."""
        if hasattr(self, "archive"):
            self.archive.close()
            self.file.close()

    def names(self) -> list[str]:
        """All members that are files; resource forks of macOS are left out."""
        infos = self.archive.infolist()
        files = (info.filename for info in infos if not info.is_dir())
        return sorted(name for name in files if not _is_fork(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return self.archive.open(name)


class Tar(Bundle):
    """A .tar archive, compressed or not. Compressed ones are read from front to back only."""

    def names(self) -> list[str]:
        """All members that are files; one pass over the archive, remembered."""
        if not hasattr(self, "_names"):
            with tarfile.open(self.path) as archive:
                files = (info.name for info in archive if info.isfile())
                self._names = sorted(_clean(name) for name in files if not _is_fork(name))
        return self._names

    def open(self, name: str) -> IO[bytes]:
        """Open a member; it has to be searched from the front."""
        archive = tarfile.open(self.path)  # noqa: SIM115  (closed with the member)
        for info in archive:
            if info.isfile() and _clean(info.name) == name:
                return io.BufferedReader(_TarMember(archive, info))
        archive.close()
        raise DataError(f"expected a member {name} in {self.path}, found none")

    def walk(self, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
        """In the archive's own order."""
        with self.base() as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for info in archive:
                name = _clean(info.name)
                if not info.isfile() or _is_fork(name) or not matches(name, pattern):
                    continue
                yield name, io.BufferedReader(_TarMember(archive, info, keep=True))


class Single(Bundle):
    """One file; ``.gz`` is unpacked while reading and left out of its name."""

    def names(self) -> list[str]:
        """The file's own name."""
        return [self.path.name.removesuffix(".gz")]

    def open(self, name: str) -> IO[bytes]:
        """Open the file."""
        if self.path.suffix == ".gz":
            return _gunzip(self.base())
        return self.base()


class _TarMember(io.RawIOBase):
    """A member read from front to back; closes its archive unless that is kept.

    What tarfile hands out of a stream has no ``seekable``, which text readers ask for.
    """

    def __init__(
        self, archive: tarfile.TarFile, info: tarfile.TarInfo, *, keep: bool = False
    ) -> None:
        file = archive.extractfile(info)
        assert file is not None
        self.archive, self.file, self.keep = archive, file, keep

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.keep:
            self.archive.close()
        super().close()


def _gunzip(packed: io.BufferedReader) -> IO[bytes]:
    """A decompressing file that closes the compressed one too."""
    file = gzip.GzipFile(fileobj=packed)
    file.myfileobj = packed  # type: ignore[assignment]  # what GzipFile closes when it has opened a path itself
    return file  # type: ignore[return-value]


class _Watched(io.FileIO):
    """A file that tells how far it was read."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None) -> None:
        super().__init__(path, "rb")
        self.on_read = on_read

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if self.on_read is not None:
            self.on_read(self.tell())
        return count


def open_bundle(path: Path, on_read: Callable[[int], None] | None = None) -> Bundle:
    """Open a folder, an archive or a plain file by what it is called.

    Args:
        path: Where it lies.
        on_read: Told the position in the archive or file as it is read.

    Raises:
        DataError: it is missing, or its archive cannot be read.
    """
    with intact(path):
        if path.is_dir():
            return Folder(path)
        if not path.is_file():
            raise DataError(f"expected a file or folder {path}, found none")
        if path.suffix == ".zip":
            return Zip(path, on_read)
        return (Tar if path.name.endswith(_TAR) else Single)(path, on_read)


@contextmanager
def intact(path: Path | str) -> Iterator[None]:
    """Turn damage of an archive into an error that names it."""
    try:
        yield
    except DAMAGE as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise  # the system's own words are clear: no space, no permission
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise DataError(
            f"expected a whole archive or file {path}, got a damaged one ({reason}); fetch it again"
        ) from fault


def _clean(name: str) -> str:
    return name.removeprefix("./")


def _is_fork(name: str) -> bool:
    return "__MACOSX/" in name or name.rsplit("/", 1)[-1].startswith("._")
