"""Files of a published archive, packed or unpacked: their names, and the bytes of any of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from metamae.errors import DataError

_CHUNK = 1 << 20
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Files:
    """Files below a place, whatever holds them.

    Attributes:
        place: The folder or archive, and the folder inside it.
        names: Names relative to the place, with forward slashes.
        opener: Opens a file by its name.
    """

    place: str
    names: Sequence[str]
    opener: Callable[[str], IO[bytes]]

    def open(self, name: str) -> IO[bytes]:
        """Open one file for reading.

        Raises:
            DataError: no such file, or one that cannot be read.
        """
        try:
            return self.opener(name)
        except (KeyError, OSError, EOFError, zipfile.BadZipFile, RuntimeError) as fault:
            raise DataError(f"expected a file {name} in {self.place}: {fault}") from fault

    def read(self, name: str) -> bytes:
        """The content of one file."""
        try:
            with self.open(name) as file:
                return file.read()
        except (OSError, EOFError, zipfile.BadZipFile) as fault:
            raise DataError(f"expected a readable file {name} in {self.place}: {fault}") from fault

    def lines(self, name: str) -> list[str]:
        """Lines of a text file that are not empty, without what ends them."""
        text = self.read(name).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def below(self, folder: str) -> Files:
        """The files below a folder, wherever that folder is: archives differ in what is above it.

        Raises:
            DataError: no file below such a folder.
        """
        inside = f"/{folder}/"
        found = {}
        for name in self.names:
            before, middle, rest = f"/{name}".partition(inside)
            if middle:
                found[rest] = (before + middle + rest)[1:]
        if not found:
            raise DataError(f"expected a folder {folder} in {self.place}, found none")
        return Files(f"{self.place}: {folder}", list(found), lambda name: self.open(found[name]))

    def around(self, name: str) -> Files:
        """The folder that holds a file, wherever it is; the outermost of several.

        Raises:
            DataError: no such file.
        """
        tails = [one for one in self.names if f"/{one}".endswith(f"/{name}")]
        if not tails:
            raise DataError(f"expected a file {name} in {self.place}, found none")
        prefix = min(tails, key=lambda one: (one.count("/"), one)).removesuffix(name)
        found = {one.removeprefix(prefix): one for one in self.names if one.startswith(prefix)}
        return Files(f"{self.place}: {prefix}", list(found), lambda one: self.open(found[one]))

    def ending(self, *suffixes: str) -> list[str]:
        """Names with one of these endings, in any case; hidden files are left out."""
        return [
            name
            for name in self.names
            if name.lower().endswith(suffixes) and not name.rpartition("/")[2].startswith(".")
        ]


@contextmanager
def open_files(place: Path, scratch: Path) -> Iterator[Files]:
    """Open a folder, a zip or a tar archive.

    A compressed tar has no index, so that reading its files in another order would unpack it anew
    for each: it is decompressed once, into ``scratch``, and removed afterwards.

    Args:
        place: The folder or archive.
        scratch: Folder for the decompressed archive.

    Raises:
        DataError: a damaged archive.
    """
    if place.is_dir():
        yield Files(str(place), list(_walk(place)), lambda name: (place / name).open("rb"))
        return
    temporary = scratch / f"{place.name}.tar"
    try:
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                names = [one.filename for one in archive.infolist() if not one.is_dir()]
                yield Files(str(place), names, archive.open)
        else:
            packed = place if _is_plain_tar(place) else _decompress(place, temporary)
            offsets = _index(packed)
            with packed.open("rb") as file:
                yield Files(str(place), list(offsets), lambda name: _part(file, *offsets[name]))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as fault:
        raise DataError(
            f"expected a complete archive {place}, which is damaged ({fault}); fetch it again"
        ) from fault
    finally:
        temporary.unlink(missing_ok=True)


def _walk(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        prefix = Path(path).relative_to(folder).as_posix()
        yield from (file if prefix == "." else f"{prefix}/{file}" for file in sorted(files))


def _is_plain_tar(place: Path) -> bool:
    try:
        tarfile.open(place, "r:").close()
    except tarfile.ReadError:
        return False
    return True


def _decompress(place: Path, target: Path) -> Path:
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with place.open("rb") as file:
        opener = openers.get(file.read(2))
    if opener is None:
        raise tarfile.ReadError("neither a zip nor a tar archive")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opener(place, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as fault:
        raise tarfile.ReadError(str(fault)) from fault
    return target


def _index(archive: Path) -> dict[str, tuple[int, int]]:
    """Where each file of an uncompressed tar begins, and its size."""
    with tarfile.open(archive, "r:") as members:
        return {
            one.name.removeprefix("./"): (one.offset_data, one.size)
            for one in members
            if one.isfile()
        }


def _part(file: IO[bytes], offset: int, size: int) -> IO[bytes]:
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise EOFError(f"{size - len(content)} bytes are missing")
    return io.BytesIO(content)


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
    decoder, text = json.JSONDecoder(), io.TextIOWrapper(file, "utf-8")
    start, kept = re.compile(rf'"{re.escape(key)}"\s*:\s*\['), ""
    while (found := start.search(kept)) is None:
        if not (more := text.read(_CHUNK)):
            raise DataError(f"expected a list {key!r} in {name}, found none")
        # What is kept of the text so far may hold the beginning of the key.
        kept = kept[-len(key) - 64 :] + more
    place = found.end()
    while True:
        place = _GAP.match(kept, place).end()  # type: ignore[union-attr]  # it matches nothing too
        if kept.startswith("]", place):
            return
        try:
            record, place = decoder.raw_decode(kept, place)
        except ValueError as fault:
            if not (more := text.read(_CHUNK)):
                raise DataError(f"expected a complete list {key!r} in {name}: {fault}") from fault
            kept, place = kept[place:] + more, 0
            continue
        yield record
