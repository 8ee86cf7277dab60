"""Raw files, wherever they lie: in a folder, a .zip, a .tar(.gz), or alone and perhaps gzipped.

A reader asks for members by name or pattern and never learns what they were packed in.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import IO, Any

from metamae.data.formats.limits import drain
from metamae.data.formats.tars import (
    is_packed,
    members,
    open_member,
    seek_tar,
    unpacking,
    walk_tar,
)
from metamae.data.formats.zips import check_directory
from metamae.errors import DataError, MetamaeError, is_systems, reason_of

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PACKINGS = (".zip", *_TAR, ".gz")
"""Ends of names of packed files."""


class Bundle(ABC):
    """A set of named files.

    Names are relative, with ``/`` between their parts. Patterns are shell patterns matched against
    the whole name and against every tail of it, so ``Protocol/*.dat`` finds the files whatever
    folders the archive puts in front.
    """

    checked = True
    """Whether members have checksums."""

    whole = False
    """Whether all of it was read."""

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

    def walk(self, pattern: str) -> Generator[tuple[str, IO[bytes]], None, None]:
        """Matching members and their content, in the order that is cheap to read: by name."""
        for name in self.match(pattern):
            with self.open(name) as file:
                yield name, file
                if not file.closed and self.checked:
                    drain(file)  # the checksum lies at its end

    def finish(self) -> None:
        """Read what was not read, where a checksum of what was is still to come."""
        self.whole = True

    def first_names(self, most: int) -> list[str]:
        """Some names, cheaply: all of them where there is a list, else the first that come."""
        return self.names()

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

    checked = False

    def names(self) -> list[str]:
        """All files below the folder, but hidden ones."""
        paths = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(str(p.as_posix()) for p in paths if not p.name.startswith("."))

    def first_names(self, most: int) -> list[str]:
        """As the system lists them."""
        files = (
            Path(folder, name).relative_to(self.path).as_posix()
            for folder, _, names in os.walk(self.path)
            for name in names
            if not name.startswith(".")
        )
        return list(islice(files, most))

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
            check_directory(self.archive, self.file)
        except BaseException:
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

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        """See :func:`open_bundle`."""
        super().__init__(path, on_read)
        self.packed = is_packed(path)

    def names(self) -> list[str]:
        """All members that are files; one pass over the archive, remembered."""
        if not hasattr(self, "_names"):
            files = (info.name for info in self._headers() if info.isfile())
            self._names = sorted(_clean(name) for name in files if not _is_fork(name))
            self.whole = True
        return self._names

    def first_names(self, most: int) -> list[str]:
        """From the front."""
        with closing(self._headers()) as headers:
            files = (_clean(info.name) for info in headers if info.isfile())
            return list(islice((name for name in files if not _is_fork(name)), most))

    def _headers(self) -> Generator[tarfile.TarInfo, None, None]:
        with self.base() as file:
            if not self.packed:
                with seek_tar(file) as archive:
                    yield from members(archive, str(self.path))
                return
            with unpacking(file, str(self.path)) as unpacked:
                for _, info in walk_tar(unpacked, str(self.path)):
                    yield info

    def open(self, name: str) -> IO[bytes]:
        """Open a member; it has to be searched from the front."""
        stack = ExitStack()
        file = stack.enter_context(unpacking(self.base(), str(self.path)))
        pairs = stack.enter_context(closing(walk_tar(file, str(self.path))))
        for archive, info in pairs:
            if info.isfile() and _clean(info.name) == name:
                return open_member(archive, info, stack.close)
        stack.close()
        raise DataError(f"expected a member {name} in {self.path}, found none")

    def walk(self, pattern: str) -> Generator[tuple[str, IO[bytes]], None, None]:
        """In the archive's own order."""
        with unpacking(self.base(), str(self.path)) as file:
            for archive, info in walk_tar(file, str(self.path)):
                name = _clean(info.name)
                if info.isfile() and not _is_fork(name) and matches(name, pattern):
                    yield name, open_member(archive, info)
        self.whole = True

    def finish(self) -> None:
        """Read what was not, for the checksums at the end."""
        if not self.whole:
            self.names()


class Single(Bundle):
    """One file; ``.gz`` is unpacked while reading and left out of its name."""

    def names(self) -> list[str]:
        """The file's own name."""
        return [self.path.name.removesuffix(".gz")]

    def open(self, name: str) -> IO[bytes]:
        """Open the file."""
        return unpacking(self.base(), str(self.path)) if self.path.suffix == ".gz" else self.base()


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
    """Turn damage of a raw file into an error that names it.

    Whatever a decoder raises is taken as damage. What the system says itself (no space, no
    permission), missing libraries and our own mistakes are not.
    """
    try:
        yield
    except (MetamaeError, AssertionError, ImportError):
        raise
    except MemoryError as fault:
        raise DataError(f"expected {path} to fit the memory there is, it does not") from fault
    except Exception as fault:
        if is_systems(fault):
            raise
        raise DataError(
            f"expected a whole archive or file {path}, got a damaged one ({reason_of(fault)}); "
            "fetch it again"
        ) from fault


def _clean(name: str) -> str:
    return name.removeprefix("./")


def _is_fork(name: str) -> bool:
    return "__MACOSX/" in name or name.rsplit("/", 1)[-1].startswith("._")
