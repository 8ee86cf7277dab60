"""Whether a set is whole: what was published of it against what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metamae.data.preparing.source import Source
from metamae.data.preparing.writer import Writer
from metamae.errors import DataError

Missing = Mapping[str, tuple[int, int]]
"""What is incomplete: how many there are, and how many were published."""


def missing_files(source: Source, paths: Mapping[str, Path]) -> Missing:
    """Roles with fewer files than published, where they can be counted without reading them.

    Raises:
        DataError: an archive that cannot be read.
    """
    missing = {}
    for role, path in paths.items():
        content = source.contents.get(role)
        if content is None or content.files is None:
            continue
        count = content.count_in(path)
        if count is not None and 0 < count < content.files:
            missing[f"files of {role}"] = count, content.files
    return missing


def missing_rows(source: Source, writer: Writer) -> Missing:
    """Partitions and arrays with fewer rows than published; unreadable files are not counted."""
    missing = {}
    for name, published in source.totals.items():
        rows = writer.count(name)
        if rows is not None and rows + len(writer.skipped) < published:
            missing[f"rows of {name}"] = rows, published
    return missing


def missing_text(missing: Missing) -> str:
    """What is missing, as one says it.

    Example:
        >>> from metamae.data.preparing.whole import missing_text
        >>> missing_text({"rows of train": (11, 990_000)})
        '11 of 990,000 rows of train'
    """
    return ", ".join(f"{count:,} of {whole:,} {name}" for name, (count, whole) in missing.items())


def refuse_partial(source: Source, missing: Missing) -> None:
    """Stop where something is missing.

    Raises:
        DataError: something is; the message says what and how to go on.
    """
    if missing:
        raise DataError(
            f"expected all of {source.name!r} as published, found {missing_text(missing)}; get the "
            "rest, or go on with what is there: --partial, which the manifest keeps"
        )
