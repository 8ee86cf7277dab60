"""Files of an archive under the names by which tables list them, decoded into rows of an array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.archives import Bundle, Tar
from metamae.data.formats.limits import read_whole
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.errors import DataError


@dataclass(frozen=True)
class View:
    """Some files by short names; what is above them in a path differs between archives.

    Attributes:
        members: Short name to the bundle that holds the file, and its name there.
    """

    members: Mapping[str, tuple[Bundle, str]]

    @classmethod
    def tails(
        cls, pattern: str, *bundles: Bundle, called: Callable[[str], str] | None = None
    ) -> View:
        """Files whose path ends like a pattern, called by that end.

        Args:
            pattern: Regular expression of the last parts of a path, in any case of letters.
            bundles: Folders or archives.
            called: Makes the short name of that end.

        Raises:
            DataError: no such file in a bundle, or two with one end.
        """
        fits = re.compile(pattern, re.IGNORECASE)
        parts = re.sub(r"\[.*?\]", "", pattern).count("/") + 1  # a slash in [^/] separates nothing
        members: dict[str, tuple[Bundle, str]] = {}
        for bundle in bundles:
            before = len(members)
            for name in bundle.names():
                tail = "/".join(name.split("/")[-parts:])
                if not fits.fullmatch(tail):
                    continue
                tail = called(tail) if called is not None else tail
                if tail in members:
                    raise DataError(
                        f"expected one file {tail}, got {members[tail][1]} in "
                        f"{members[tail][0].path} and {name} in {bundle.path}; leave one copy"
                    )
                members[tail] = (bundle, name)
            if len(members) == before:
                raise DataError(f"expected files like {pattern} in {bundle.path}, found none")
        return cls(members)

    @classmethod
    def around(cls, marker: str, bundle: Bundle) -> View:
        """All files of the folder that holds a marker file.

        Raises:
            DataError: no such file, or several.
        """
        prefix = bundle.one(marker).removesuffix(marker)
        inside = (name for name in bundle.names() if name.startswith(prefix))
        return cls({name.removeprefix(prefix): (bundle, name) for name in inside})

    def walk(self, names: Iterable[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """Files and their content, in the order that is cheap to read.

        A compressed archive has no index: it is read once from front to back.
        """
        wanted: dict[Bundle, dict[str, str]] = {}
        for name in names:
            bundle, member = self.members[name]
            wanted.setdefault(bundle, {})[member] = name
        for bundle, members in wanted.items():
            if isinstance(bundle, Tar):
                left = set(members)
                for member, file in bundle.walk("*"):
                    if member in members:
                        yield members[member], file
                        left.discard(member)
                    if not left and bundle.whole:  # its checksum was compared before
                        break
                continue
            for member, name in members.items():
                with bundle.open(member) as file:
                    yield name, file


def tables(bundle: Bundle, *names: str) -> list[bytes]:
    """Contents of the files with these names, wherever in the bundle they are.

    Raises:
        DataError: a file is missing, or there are several.
    """
    view = View({name: (bundle, bundle.one(name)) for name in names})
    contents = {name: read_whole(file, name) for name, file in view.walk(names)}
    return [contents[name] for name in names]


def lines(content: bytes) -> list[str]:
    """Lines of a text that are not empty, without what ends them."""
    text = content.decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def store(
    writer: Writer,
    array: RowWriter,
    view: View,
    names: Sequence[str],
    decode: Callable[[bytes, str], Array],
) -> dict[str, tuple[int, int]]:
    """Decode files into rows of an array.

    Args:
        writer: Stops at a file that cannot be read, or skips and counts it.
        array: Where rows go, in the order that is cheap to read.
        view: Where the files are.
        names: Which of them; each is read once, however often it is named.
        decode: Content and name of a file to its rows ``(n, ...)``.

    Returns:
        First and last row of every file that was read.
    """
    rows: dict[str, tuple[int, int]] = {}
    once = dict.fromkeys(names)
    for name in once:
        if name not in view.members:
            with writer.reading(name):
                raise DataError("it is listed, but not there")
    there = [name for name in once if name in view.members]
    stage = writer.reporter.stage(array.path.stem, total=len(there), unit="files")
    with stage as bar:
        for name, file in view.walk(there):
            with writer.reading(name):
                first = array.rows
                array.extend(decode(read_whole(file, name), name))
                rows[name] = (first, array.rows - 1)
            bar.advance()
    return rows


def store_halves(
    writer: Writer,
    array: RowWriter,
    view: View,
    halves: Halves,
    decode: Callable[[bytes, str], Array],
) -> None:
    """Decode all files of a labelled set; the arguments are those of :func:`store`."""
    rows = store(writer, array, view, halves.train.files + halves.test.files, decode)
    save_halves(writer, halves, rows, array)


def save_halves(
    writer: Writer, halves: Halves, rows: Mapping[str, tuple[int, int]], array: RowWriter
) -> None:
    """Write labels and both labelled partitions.

    Args:
        writer: Where they go.
        halves: Files and labels of both.
        rows: Rows of the files that could be read, of :func:`store`; the others are left out.
        array: The array they are rows of, called like the input.
    """
    labels = np.zeros(array.rows, np.int64)
    indices = []
    for half in (halves.train, halves.test):
        pairs = zip(half.files, half.labels, strict=True)
        stored = [(rows[file][0], label) for file, label in pairs if file in rows]
        index, values = np.array(stored, np.int64).reshape(-1, 2).T
        labels[index] = values
        indices.append(index)
    name = array.path.stem
    writer.probe({name: name}, writer.save("label", labels), *indices)
    writer.note(classes=list(halves.classes))
