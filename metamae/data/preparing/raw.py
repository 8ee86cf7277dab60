"""The raw files of a preparation, as a reader sees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from metamae.data.formats.archives import Bundle, Folder, Tar, intact, open_bundle
from metamae.data.preparing.layouts import nested_name
from metamae.errors import DataError
from metamae.progress import Reporter, Stage

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The raw files of one preparation, as a reader sees them.

    Attributes:
        layout: Which of the source's layouts they have.
        paths: Role to folder, archive or file. An archive inside of another is unpacked first.
        options: All options of the source.
        reporter: Shows progress.
        only: ``pretrain`` or ``probe`` where nothing else is asked for.
        scratch: A folder for what has to be unpacked, of the caller's, who clears it.
        watch: Told the position in a file whenever some of it is read.
    """

    layout: str
    paths: Mapping[str, Path]
    options: Mapping[str, str]
    reporter: Reporter
    only: str | None = None
    scratch: Path
    watch: Callable[[int], None] | None = None
    opened: list[Bundle] = field(default_factory=list, compare=False)

    def wants(self, part: str) -> bool:
        """Whether ``pretrain`` or ``probe`` is asked for."""
        return self.only in (None, part)

    def bundle(self, role: str) -> Bundle:
        """Open the folder, archive or file of a role."""
        self.opened.append(open_bundle(self.paths[role], self.watch))
        return self.opened[-1]

    def extract(self, bundle: Bundle, name: str) -> Path:
        """A member on disk, for libraries that seek; of a folder, the file itself."""
        if isinstance(bundle, Folder):
            return bundle.path / name
        self.scratch.mkdir(exist_ok=True)
        path = self.scratch / f"{len(list(self.scratch.iterdir()))}" / name.rpartition("/")[2]
        path.parent.mkdir()
        with path.open("wb") as file, intact(bundle.path):
            if not isinstance(bundle, Tar):
                with bundle.open(name) as member:
                    shutil.copyfileobj(member, file, _MIB)
                return path
            with closing(bundle.walk("*")) as members:
                for found, member in members:  # to the end, where the archive's checksum is
                    if found == name:
                        shutil.copyfileobj(member, file, _MIB)
        return path

    def unnested(self, names: Mapping[str, tuple[str, ...]]) -> Raw:
        """The same files, with archives inside of archives unpacked.

        Args:
            names: Role to the names its raw file may have, inside of another too.

        Raises:
            DataError: a damaged archive.
        """
        paths = {}
        for role, path in self.paths.items():
            with intact(path):
                inner = nested_name(path, names[role])
                paths[role] = path if inner is None else self.extract(self.bundle(role), inner)
        return replace(self, paths=paths)

    def finish(self) -> None:
        """Read archives to their end, where their checksums are, unless that was done.

        Raises:
            DataError: an archive is damaged, and so what was read of it may be.
        """
        for path in dict.fromkeys(bundle.path for bundle in self.opened):
            bundles = [bundle for bundle in self.opened if bundle.path == path]
            if not any(bundle.whole for bundle in bundles):
                with intact(path):
                    bundles[0].finish()

    @contextmanager
    def open(self, role: str, pattern: str = "*") -> Iterator[IO[bytes]]:
        """The first member of a role that matches, behind a progress bar.

        Raises:
            DataError: none matches, or the archive is damaged.
        """
        members = self.walk(role, pattern)
        first = next(members, None)
        if first is None:
            self.bundle(role).one(pattern)  # raises: the file is not there
            raise DataError(f"expected {pattern} in {self.paths[role]}, found none")
        try:
            yield first[1]
            if not self.paths[role].is_dir():
                for _ in members:  # to the end of the archive, where its checksum is
                    pass
        finally:
            members.close()

    def walk(self, role: str, pattern: str) -> Generator[tuple[str, IO[bytes]], None, None]:
        """Matching members of a role with their content, behind a progress bar.

        Archives are read in their own order, folders by name.
        """
        path = self.paths[role]
        title = f"reading {path.name}"
        if path.is_dir():
            bundle = open_bundle(path)
            total = max(len(bundle.match(pattern)), 1)
            with self.reporter.stage(title, total=total, unit="files") as stage:
                for member in bundle.walk(pattern):
                    yield member
                    stage.advance()
            return
        total = max(path.stat().st_size // _MIB, 1)
        with self.reporter.stage(title, total=total, unit="MiB") as stage, intact(path):
            self.opened.append(open_bundle(path, _Meter(stage, total, self.watch)))
            yield from self.opened[-1].walk(pattern)


class _Meter:
    """Advances a bar by one for every MiB of an archive that was passed."""

    def __init__(self, stage: Stage, total: int, then: Callable[[int], None] | None) -> None:
        self.stage, self.total, self.done, self.then = stage, total, 0, then

    def __call__(self, position: int) -> None:
        if self.then is not None:
            self.then(position)
        while self.done < min(position // _MIB, self.total):
            self.stage.advance()
            self.done += 1
