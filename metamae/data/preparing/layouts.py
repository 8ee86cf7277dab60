"""Where raw files may lie: by several names, packed in any way or not, perhaps a folder deeper."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from metamae.data.formats.archives import PACKINGS, open_bundle
from metamae.errors import DataError

_PEEKED = 500
"""Files of an archive without a list that are looked at."""
_WALKED = 1_000_000
"""Files of a folder that are looked at."""
_LISTED = 2000
_ALIKE = 0.75
_NOT_RAW = "prepared"

Names = str | tuple[str, ...]
"""A path below the data folder, or several of which one is enough, the preferred first."""


@dataclass(frozen=True)
class Content:
    """What the raw file of a role holds, by which it is known whatever it is called.

    Attributes:
        pattern: Regular expression of the last parts of the paths of its files.
        files: How many of these were published, where that is known.
    """

    pattern: str
    files: int | None = None

    def fits(self, name: str) -> bool:
        r"""Whether a file is one of these.

        Example:
            >>> from metamae.data.preparing.layouts import Content
            >>> Content(r"Protocol/subject\d+\.dat").fits("PAMAP2/Protocol/subject101.dat")
            True
        """
        return re.search(rf"(?:^|/)(?:{self.pattern})$", name) is not None

    def found_in(self, path: Path) -> bool:
        """Whether a folder, archive or file holds such files, by its list or its beginning.

        Raises:
            DataError: an archive that cannot be read.
        """
        most = _PEEKED if path.is_file() else _WALKED
        names = open_bundle(path).first_names(most)
        return any(self.fits(f"{path.name}/{name}") for name in names)

    def count_in(self, path: Path) -> int | None:
        """How many such files there are; ``None`` where that needs reading all of it."""
        if path.is_file() and not path.name.endswith(".zip"):
            return None
        return sum(self.fits(f"{path.name}/{name}") for name in open_bundle(path).names())


@dataclass(frozen=True)
class Layout:
    """One accepted way in which the raw files may lie below the data folder.

    Attributes:
        name: ``published`` (archives as they are handed out), ``unpacked``, ``dabs`` (what the
            DABS downloader leaves) or ``metamae`` (the folders of the MetaMAE experiments).
        paths: Role to its names. All roles have to be there, below the data folder or below a
            folder in it that is called like the data set.
        checked: Whether names are not enough, because other things have them too: the content has
            to be right.
    """

    name: str
    paths: Mapping[str, Names]
    checked: bool = False

    def names(self, role: str) -> tuple[str, ...]:
        """The names of a role, the preferred first."""
        names = self.paths[role]
        return (names,) if isinstance(names, str) else names

    def wanted(self, role: str, data_dir: Path) -> str:
        """Where the raw file of a role belongs, and what else it may be called."""
        first, *others = self.names(role)
        others_text = f" (or {', '.join(others)})" if others else ""
        return f"{data_dir / first}{others_text}"

    def find(self, data_dir: Path, source: str, contents: Mapping[str, Content]) -> dict[str, Path]:
        """Role to existing path by the names as they are; roles that are missing are left out.

        Folders may be called like anything: what is in them has to be right too.
        """
        there: dict[str, Path] = {}
        for role in () if self.checked else self.paths:
            for path in (b / name for b in _bases(data_dir, source) for name in self.names(role)):
                if path.is_file() or (path.is_dir() and _is_right(path, role, contents)):
                    there[role] = path
                    break
        return there

    def find_other_forms(
        self, data_dir: Path, source: str, contents: Mapping[str, Content]
    ) -> dict[str, Path]:
        """The same with other packings, and one folder deeper, where the content is right."""
        there = {}
        bases = [*_bases(data_dir, source), *_deeper(data_dir, source)]
        for role in self.paths:
            for path in (base / form for base in bases for form in forms(self.names(role))):
                if path.exists() and _is_right(path, role, contents):
                    there[role] = path
                    break
        return there

    @classmethod
    def within(cls, name: str, folder: str, files: Mapping[str, str]) -> Layout:
        """Files that lie together in a folder."""
        return cls(name, {role: f"{folder}/{file}" for role, file in files.items()})


def _is_right(path: Path, role: str, contents: Mapping[str, Content]) -> bool:
    return role not in contents or contents[role].found_in(path)


def packed_or_not(
    role: str, published: Mapping[str, Names], **folders: Names
) -> tuple[Layout, ...]:
    """The published archives, or a folder that has all that is in them, by name of the layout."""
    unpacked = (Layout(name, {role: folder}) for name, folder in folders.items())
    return (Layout("published", published), *unpacked)


def forms(names: Collection[str]) -> Iterator[str]:
    """Every name as it is, then without and with every packing.

    Example:
        >>> from metamae.data.preparing.layouts import forms
        >>> list(forms(["HIGGS.csv.gz"]))[:4]
        ['HIGGS.csv.gz', 'HIGGS.csv', 'HIGGS.csv.zip', 'HIGGS.csv.tar']
    """
    yield from names
    for name in names:
        for ending in ("", *PACKINGS):
            yield without_packing(name) + ending


def without_packing(name: str) -> str:
    """A name without what says how it is packed."""
    for ending in sorted(PACKINGS, key=len, reverse=True):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def similar_files(data_dir: Path, source: str, names: Collection[str]) -> list[str]:
    """Files and folders whose names are like those that were looked for, relative to the folder."""
    wanted = {_plain(name.rpartition("/")[2]) for name in names} | {_plain(source)}
    places = [*_bases(data_dir, source), *_deeper(data_dir, source)]
    seen = (path for place in places if place.is_dir() for path in _entries(place))
    like = [path.relative_to(data_dir).as_posix() for path in seen if _is_like(path.name, wanted)]
    return sorted(set(like))


def _is_like(name: str, wanted: Collection[str]) -> bool:
    plain = _plain(name)
    return len(plain) > 2 and any(
        (len(word) > 2 and (word in plain or (len(plain) > 4 and plain in word)))
        or SequenceMatcher(None, plain, word).ratio() > _ALIKE
        for word in wanted
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", without_packing(name).lower())


def _bases(data_dir: Path, source: str) -> tuple[Path, Path]:
    return data_dir / source, data_dir


def _deeper(data_dir: Path, source: str) -> Iterator[Path]:
    for base in _bases(data_dir, source):
        if base.is_dir():
            yield from (p for p in _entries(base) if p.is_dir() and p != data_dir / source)


def _entries(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in paths[:_LISTED] if path.name != _NOT_RAW]


def nested_name(path: Path, names: Collection[str]) -> str | None:
    """The archive inside an archive that has one of a role's names, if there is one.

    Raises:
        DataError: several of them.
    """
    if path.is_dir() or not path.name.endswith(PACKINGS[:-1]):
        return None
    wanted = {name.rpartition("/")[2] for name in forms(names)} - {path.name}
    inside = open_bundle(path).first_names(_PEEKED)
    packed = [name for name in inside if name.endswith(PACKINGS)]
    fits = [name for name in packed if name.rpartition("/")[2] in wanted]
    if len(fits) > 1:
        raise DataError(f"expected one archive in {path}, got {', '.join(fits[:3])}; unpack it")
    return fits[0] if fits else None
