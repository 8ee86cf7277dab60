"""Folders of pictures or sounds: files, classes by subfolder, training and test by folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from metamae.data.own.facts import Asked, Facts, Values, gather, is_file, mark_of
from metamae.data.own.listed import read_listed
from metamae.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac")
"""Endings of the files that are read."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Folder:
    """Files of one kind below a folder, in the order of their paths.

    Attributes:
        root: The folder.
        kind: ``image`` or ``audio``.
        files: Paths below the folder, with ``/``; they name the rows.
        skip_bad: Whether files that cannot be read are left out.
    """

    root: Path
    kind: str
    files: tuple[str, ...]
    skip_bad: bool = False

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def name(self) -> str:
        """What it is called in errors."""
        return str(self.root)

    def facts(self, asked: Asked) -> Facts:
        """Classes by subfolder; ``train`` and ``test`` above them, or alone, say what is tested."""
        folders = [file.split("/")[:-1] for file in self.files]
        remarks = []
        top = {parts[0] for parts in folders if parts}
        marked = all(folders) and {"train", "test"} <= {mark_of(name) for name in top} | {""}
        marked = marked and all(mark_of(name) for name in top)
        marks: Values | None = None
        if marked and not asked.split:
            marks = [mark_of(parts[0]) for parts in folders]
            folders = [parts[1:] for parts in folders]
            remarks.append(f"folders {', '.join(sorted(top))} say what is for training and testing")
        classes = [parts[0] if parts else None for parts in folders]
        found = gather(asked, len(self), self._read, self.files)
        labels = found.labels
        if labels is None and len(set(classes) - {None}) > 1:
            labels = classes
            remarks.append("subfolders are taken as classes")
        return Facts(
            ids=found.ids,
            labels=labels,
            groups=found.groups,
            marks=found.marks if asked.split else marks,
            remarks=tuple(remarks),
        )

    def without(self, asked: Asked) -> Folder:
        """Itself: what is beside the files is no input."""
        if asked.drop:
            raise DataError(f"expected nothing to drop from a folder of files, got {asked.drop[0]}")
        return self

    def _read(self, role: str, name: str) -> Values:
        if is_file(name):
            return read_listed(Path(name), self.files)
        raise DataError(
            f"expected a file with names of files and values (.csv) for {role} of {self.root}, got "
            f"{name!r}; classes by subfolder need no label"
        )

    def read_each(self, read: Callable[[bytes, str], Made]) -> tuple[list[Made], Folder]:
        """Read every file; those that cannot be read are named, or left out where that is asked.

        Returns:
            What was made of the files, and the folder without those that were left out.

        Raises:
            DataError: files that cannot be read; or none that can.
        """
        made, whole, bad = [], [], []
        for file in self.files:
            try:
                made.append(read((self.root / file).read_bytes(), file))
                whole.append(file)
            except DataError as fault:
                bad.append((file, fault))
        if bad and (not self.skip_bad or not whole):
            more = f"; {len(bad)} such files, such as " if len(bad) > 1 else ""
            names = ", ".join(file for file, _ in bad[1:4])
            raise DataError(
                f"expected {len(self.files)} files that can be read in {self.root}: {bad[0][1]}"
                f"{more}{names}; mend them, or leave them out by --skip-bad (skip_bad=True)"
            )
        return made, Folder(self.root, self.kind, tuple(whole), self.skip_bad)


def list_folder(root: Path, kind: str, *, skip_bad: bool) -> Folder:
    """Find the files of a folder; hidden ones are left alone.

    Raises:
        DataError: none is there, or pictures and sounds are mixed.
    """
    found: dict[str, list[str]] = {"image": [], "audio": []}
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            suffix = Path(name).suffix.lower()
            path = (Path(place) / name).relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if suffix in PICTURES or suffix in SOUNDS:
                found["image" if suffix in PICTURES else "audio"].append(path)
            else:
                others[suffix or name] += 1
    asked = kind
    if kind == "auto":
        both = found["image"] and found["audio"]
        if both:
            raise DataError(
                f"expected pictures or sounds in {root}, got {len(found['image'])} and "
                f"{len(found['audio'])}; say which by --as image or --as audio"
            )
        kind = "audio" if found["audio"] else "image"
    if kind not in found:
        raise DataError(f"expected a file for kind {kind!r}, got the folder {root}")
    if not found[kind]:
        what = {
            "image": f"pictures ({', '.join(PICTURES)})",
            "audio": f"sounds ({', '.join(SOUNDS)})",
        }
        expected = " or ".join(what.values()) if asked == "auto" else what[kind]
        listed = ", ".join(f"{count} of {suffix}" for suffix, count in others.most_common(4))
        raise DataError(
            f"expected {expected} in {root}, found {listed or 'no files'}; name the folder that "
            "holds the files"
        )
    return Folder(root, kind, tuple(sorted(found[kind])), skip_bad)


def describe_skipped(before: Folder, after: Folder) -> tuple[str, ...]:
    """Which files were left out."""
    lost = sorted(set(before.files) - set(after.files))
    if not lost:
        return ()
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return (f"{len(lost)} files could not be read and are left out: {', '.join(lost[:5])}{more}",)


def places(files: Sequence[str], kept: Sequence[str]) -> list[int]:
    """Where the kept files are among all."""
    where = {file: number for number, file in enumerate(files)}
    return [where[file] for file in kept]
