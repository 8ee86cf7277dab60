"""A set of named files, and the simplest: those of a folder."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import IO, Any

from metamae.data.formats.limits import drain
from metamae.errors import DataError


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
