"""What a full data set is: where its raw files lie, how they are read, and what they become."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from metamae.config import near
from metamae.data.archives import Bundle, intact, open_bundle
from metamae.data.dataset import Affine, Partition, Task
from metamae.errors import ConfigError, DataError, MissingLibraryError
from metamae.inputs import Inputs

if TYPE_CHECKING:
    from metamae.data.prepared import Prepared
    from metamae.data.writer import Writer
    from metamae.progress import Reporter, Stage

_MIB = 1 << 20

Facts = Mapping[str, Any]
"""What a reader noted in the manifest for opening the set: label maps, segments, ..."""


@dataclass(frozen=True)
class Layout:
    """One accepted way in which the raw files may lie below the data folder.

    Attributes:
        name: ``published`` (archives as they are handed out), ``unpacked``, ``dabs`` (what the
            DABS downloader leaves) or ``metamae`` (the folders of the MetaMAE experiments).
        paths: Role to path. All of them have to be there, below the data folder or below a folder
            in it that is called like the data set.
    """

    name: str
    paths: Mapping[str, str]

    def find(self, data_dir: Path, source: str) -> dict[str, Path]:
        """Role to existing path; roles whose path is missing are left out."""
        found = {}
        for role, path in self.paths.items():
            for base in (data_dir / source, data_dir):
                if (base / path).exists():
                    found[role] = base / path
                    break
        return found


@dataclass(frozen=True)
class Option:
    """A choice made when a set is prepared; the first choice is the default."""

    choices: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A full data set by name.

    Attributes:
        name: Name it is asked for by; paper presets carry the same.
        modality: For lists, such as ``tabular``.
        origin: What to fetch, and from whom.
        inputs: Input specifications; takes the token size.
        token_size: Default token size; empty where a token is one symbol or column.
        layouts: Accepted layouts, the preferred first.
        prepare: Reads raw files and writes arrays.
        task: What a probe predicts; ``None`` for pretraining only. Classes that only the files
            know are noted by the reader (:meth:`Writer.note`) under ``classes``.
        pretrained_on: The set whose encoder is probed on this one, and whose preset fits.
        split: How rows are split, and what deviates from the published code, in one sentence.
        scaling: Input name to scaling.
        options: Name to option.
        modules: Optional libraries that the reader imports.
        partitions: Builds the partitions, for sets whose examples are not rows of arrays.
    """

    name: str
    modality: str
    origin: str
    inputs: Callable[[Sequence[int]], Inputs]
    token_size: tuple[int, ...] = ()
    layouts: tuple[Layout, ...]
    prepare: Callable[[Raw, Writer], None]
    task: Task | None
    pretrained_on: str
    split: str
    scaling: Mapping[str, Affine] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    partitions: Callable[[Prepared, Inputs], dict[str, Partition]] | None = None

    def resolve(self, options: Mapping[str, str]) -> dict[str, str]:
        """All options, with defaults for those not given.

        Raises:
            ConfigError: an unknown option or choice.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"expected an option of {self.name!r} ({known}), {near(name, self.options)}"
                )
            choices = self.options[name].choices
            if value not in choices:
                raise ConfigError(
                    f"expected option {name} of {self.name!r} among {', '.join(choices)}, "
                    f"{near(value, choices)}"
                )
        return {name: options.get(name, one.choices[0]) for name, one in self.options.items()}

    def specify(self, token_size: Sequence[int]) -> Inputs:
        """Input specifications for a token size; the set's own when empty."""
        if len(token_size) > len(self.token_size):
            raise ConfigError(
                f"expected {len(self.token_size)} numbers as the token size of {self.name!r}, "
                f"got {list(token_size)}"
            )
        return self.inputs(tuple(token_size) or self.token_size)

    def locate(self, data_dir: Path) -> tuple[Layout, dict[str, Path]]:
        """The first layout that is complete, with its paths.

        Raises:
            DataError: none is; the message says what to put where.
        """
        for layout in self.layouts:
            found = layout.find(data_dir, self.name)
            if len(found) == len(layout.paths):
                return layout, found
        nearest = max(self.layouts, key=lambda one: len(one.find(data_dir, self.name)))
        there = nearest.find(data_dir, self.name)
        missing = [str(data_dir / p) for role, p in nearest.paths.items() if role not in there]
        raise DataError(
            f"expected the raw files of {self.name!r}, missing {', '.join(missing)}; "
            f"get {self.origin} and put the files there, or see: "
            f"metamae data check {self.name} --data-dir {data_dir}"
        )


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The raw files of one preparation, as a reader sees them."""

    layout: str
    paths: Mapping[str, Path]
    options: Mapping[str, str]
    reporter: Reporter

    def bundle(self, role: str) -> Bundle:
        """Open the folder, archive or file of a role."""
        return open_bundle(self.paths[role])

    @contextmanager
    def open(self, role: str, pattern: str = "*") -> Iterator[IO[bytes]]:
        """The first member of a role that matches, behind a progress bar.

        Raises:
            DataError: none matches, or the archive is damaged.
        """
        members = self.walk(role, pattern)
        found = next(members, None)
        if found is None:
            self.bundle(role).one(pattern)  # raises: the file is not there
            raise DataError(f"expected {pattern} in {self.paths[role]}, found none")
        try:
            yield found[1]
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
            yield from open_bundle(path, _Meter(stage, total)).walk(pattern)


class _Meter:
    """Advances a bar by one for every MiB of an archive that was passed."""

    def __init__(self, stage: Stage, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0

    def __call__(self, position: int) -> None:
        while self.done < min(position // _MIB, self.total):
            self.stage.advance()
            self.done += 1


def need_module(name: str) -> ModuleType:
    """Import an optional library of a reader.

    Raises:
        MissingLibraryError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingLibraryError(
            f"expected the library {name}, which this reader needs ({fault}); "
            "run: pip install 'metamae[data]'"
        ) from fault
