"""What a full data set is: where its raw files lie, how they are read, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from metamae.data.dataset import Affine, Array, Partition, Task, choose_token_size
from metamae.data.preparing.layouts import Content as Content
from metamae.data.preparing.layouts import Layout as Layout
from metamae.data.preparing.layouts import Names as Names
from metamae.data.preparing.layouts import packed_or_not as packed_or_not
from metamae.data.preparing.layouts import similar_files
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
        contents: Role to what its raw file holds.
        totals: Partition or array to its published number of rows.
        enough_for: ``pretrain`` or ``probe`` to the roles that are enough for it alone.
        lookalikes: Names of other sets that are taken for this one, and why they are not it.
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
    contents: Mapping[str, Content] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    enough_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lookalikes: Mapping[str, str] = field(default_factory=dict)
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

    def all_roles(self) -> list[str]:
        """Roles of all layouts."""
        return [*dict.fromkeys(role for layout in self.layouts for role in layout.paths)]

    def names(self, role: str) -> tuple[str, ...]:
        """All names of a role, of every layout that has it."""
        return tuple(
            name for layout in self.layouts if role in layout.paths for name in layout.names(role)
        )

    def roles(self, layout: Layout, only: str | None) -> list[str]:
        """Roles that have to be there for all, or for one of ``pretrain`` and ``probe``.

        Raises:
            ConfigError: a set that comes in one piece.
        """
        if only is None:
            return [*layout.paths]
        if only not in self.enough_for:
            raise ConfigError(
                f"expected all of {self.name!r}, got --only {only}: it comes in one piece"
            )
        return [role for role in layout.paths if role in self.enough_for[only]] or [*layout.paths]

    def search(self, data_dir: Path) -> list[tuple[Layout, dict[str, Path]]]:
        """Every layout with what is there of it: first by the names as they are."""
        exact = [
            (layout, layout.find(data_dir, self.name, self.contents)) for layout in self.layouts
        ]
        if any(len(paths) == len(layout.paths) for layout, paths in exact):
            return exact
        return [
            (layout, layout.find_other_forms(data_dir, self.name, self.contents) | paths)
            for layout, paths in exact
        ]

    def locate(self, data_dir: Path, only: str | None = None) -> tuple[Layout, dict[str, Path]]:
        """The first layout that is complete, with its paths.

        Args:
            data_dir: Folder with the raw files.
            only: ``pretrain`` or ``probe``, where the files for one of them are enough.

        Raises:
            DataError: none is; the message says what to put where.
            ConfigError: a set that comes in one piece, and ``only``.
        """
        candidates = self.search(data_dir)
        for layout, paths in candidates:
            roles = self.roles(layout, only)
            if all(role in paths for role in roles):
                return layout, {role: paths[role] for role in roles}
        nearest, there = max(candidates, key=lambda pair: len(pair[1]))
        absent = [role for role in self.roles(nearest, only) if role not in there]
        missing = [nearest.wanted(role, data_dir) for role in absent]
        instead = self.instead(data_dir)
        raise DataError(
            f"expected the raw files of {self.name!r}, missing {', '.join(missing)}"
            f"{f' ({instead})' if instead else ''}; get {self.origin} and put the files there, or "
            f"see: metamae data check {self.name} --data-dir {data_dir}"
        )

    def instead(self, data_dir: Path) -> str:
        """What was found in place of what is missing; empty where nothing was."""
        there = max((paths for _, paths in self.search(data_dir)), key=len)
        told = [
            f"{name} {why}"
            for name, why in self.lookalikes.items()
            if Layout("", {"": name}).find_other_forms(data_dir, self.name, {})
        ]
        absent = [role for role in self.all_roles() if role not in there]
        names = [name for role in absent for name in self.names(role)]
        known = {path.relative_to(data_dir).as_posix() for path in there.values()}
        like = [name for name in similar_files(data_dir, self.name, names) if name not in known]
        if like:
            told.append(f"found {', '.join(like[:5])}")
        enough = [part for part, roles in self.enough_for.items() if all(r in there for r in roles)]
        if enough:
            told.append(f"what is there is enough for --only {' or '.join(enough)}")
        return "; ".join(told)
