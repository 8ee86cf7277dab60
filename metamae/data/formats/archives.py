"""Raw files, wherever they lie: in a folder, a .zip, a .tar(.gz), or alone and perhaps gzipped.

A reader asks for members by name or pattern and never learns what they were packed in.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

from metamae.data.formats.bundles import Bundle as Bundle
from metamae.data.formats.bundles import Folder as Folder
from metamae.data.formats.bundles import matches as matches
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

_GLANCE = 1 << 28
"""Bytes of an archive without a list that are passed for its first names."""


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
        """From the front, and no further than a glance: to skip a file is to read it."""
        names, passed = [], 0
        with closing(self._headers()) as headers:
            for info in headers:
                if info.isfile() and not _is_fork(info.name):
                    names.append(_clean(info.name))
                passed += info.size
                if len(names) == most or passed > _GLANCE:
                    break
        return names

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
