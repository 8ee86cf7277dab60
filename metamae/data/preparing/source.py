"""What a full data set is: where its raw files lie, how they are read, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from metamae.data.dataset import Affine, Array, Partition, Task, choose_token_size
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.writer import Writer
from metamae.errors import ConfigError, DataError, suggest
from metamae.inputs import Inputs


class Stored(Protocol):
    """A prepared set, as those see it that build partitions of their own."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What ``manifest.json`` says."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the reader noted."""
        ...

    @property
    def options(self) -> dict[str, str]:
        """The options it was prepared with."""
        ...

    def array(self, name: str) -> Array:
        """One array, memory-mapped and read-only."""
        ...

    def stored_partitions(self, inputs: Inputs) -> dict[str, Partition]:
        """Partitions whose examples are rows of arrays."""
        ...


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
        there = {}
        for role, path in self.paths.items():
            for base in (data_dir / source, data_dir):
                if (base / path).exists():
                    there[role] = base / path
                    break
        return there

    @classmethod
    def within(cls, name: str, folder: str, files: Mapping[str, str]) -> Layout:
        """Files that lie together in a folder."""
        return cls(name, {role: f"{folder}/{file}" for role, file in files.items()})


def packed_or_not(role: str, published: Mapping[str, str], **folders: str) -> tuple[Layout, ...]:
    """The published archives, or a folder that has all that is in them, by name of the layout."""
    unpacked = (Layout(name, {role: folder}) for name, folder in folders.items())
    return (Layout("published", published), *unpacked)


@dataclass(frozen=True)
class Option:
    """A choice made when a set is prepared; the first choice is the default."""

    choices: tuple[str, ...]
    meaning: str


def options_text(options: Mapping[str, str]) -> str:
    """Options as one writes them, ``labels=all, test_subjects=105``."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


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
    partitions: Callable[[Stored, Inputs], dict[str, Partition]] | None = None

    def resolve(self, options: Mapping[str, str]) -> dict[str, str]:
        """All options, with defaults for those not given.

        Raises:
            ConfigError: an unknown option or choice.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"expected an option of {self.name!r} ({known}), {suggest(name, self.options)}"
                )
            choices = self.options[name].choices
            if value not in choices:
                raise ConfigError(
                    f"expected option {name} of {self.name!r} among {', '.join(choices)}, "
                    f"{suggest(value, choices)}"
                )
        return {name: options.get(name, known.choices[0]) for name, known in self.options.items()}

    def specify(self, token_size: Sequence[int]) -> Inputs:
        """Input specifications for a token size; the set's own when empty."""
        return self.inputs(choose_token_size(self.name, token_size, self.token_size))

    def locate(self, data_dir: Path) -> tuple[Layout, dict[str, Path]]:
        """The first layout that is complete, with its paths.

        Raises:
            DataError: none is; the message says what to put where.
        """
        candidates = [(layout, layout.find(data_dir, self.name)) for layout in self.layouts]
        for layout, paths in candidates:
            if len(paths) == len(layout.paths):
                return layout, paths
        nearest, there = max(candidates, key=lambda pair: len(pair[1]))
        missing = [str(data_dir / p) for role, p in nearest.paths.items() if role not in there]
        raise DataError(
            f"expected the raw files of {self.name!r}, missing {', '.join(missing)}; "
            f"get {self.origin} and put the files there, or see: "
            f"metamae data check {self.name} --data-dir {data_dir}"
        )
