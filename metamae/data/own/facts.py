"""What is known of rows beside their inputs: names, labels, groups, and which are for testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError, shown, suggest

Values = Sequence[Any]
"""One value a row, of whatever type the file has; ``None`` or NaN where there is none."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user named: columns, keys or files, empty where nothing was named."""

    label: str = ""
    ids: str = ""
    group: str = ""
    split: str = ""
    drop: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check that names are texts, and that no two roles share one."""
        names = {"label": self.label, "ids": self.ids, "group": self.group, "split": self.split}
        for role, name in names.items():
            if not isinstance(name, str):
                raise DataError(f"expected {role} as the name of a column, got {shown(name)}")
        if isinstance(self.drop, str) or not all(isinstance(name, str) for name in self.drop):
            raise DataError(f"expected drop as a list of names of columns, got {shown(self.drop)}")
        if self.label and self.label in (self.split, *self.drop):
            raise DataError(
                f"expected the label {self.label!r} to be no other thing too, got it as the split "
                "or among those to drop; name it once"
            )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One value a row each, or ``None``.

    Attributes:
        ids: Names of the rows.
        labels: As they stand in the file.
        groups: Numbers of groups.
        marks: ``train``, ``test`` or ``pretrain``.
        remarks: What was taken for what without being asked.
    """

    ids: list[str]
    labels: Values | None = None
    groups: Array | None = None
    marks: Values | None = None
    remarks: tuple[str, ...] = ()


def gather(asked: Asked, count: int, read: Callable[[str, str], Values], ids: Values) -> Facts:
    """Facts of what was named; ``read(role, name)`` gives a column, a key or a file.

    Raises:
        DataError: as many values as rows are not there, or groups that are missing.
    """
    found: dict[str, Values] = {}
    for role in ("label", "ids", "group", "split"):
        name = getattr(asked, role)
        if name:
            found[role] = values = read(role, name)
            if len(values) != count:
                raise DataError(
                    f"expected {count} values in {name!r}, one a row, got {len(values)}"
                )
    groups = None
    if "group" in found:
        groups = number_groups(found["group"], asked.group)
    marks = None if "split" not in found else read_marks(found["split"], asked.split)
    names = [as_text(value) for value in found.get("ids", ids)]
    return Facts(ids=names, labels=found.get("label"), groups=groups, marks=marks)


def is_missing(value: Any) -> bool:
    """Whether nothing is there: ``None``, NaN, pandas' NA, or an empty text.

    Example:
        >>> from metamae.data.own.facts import is_missing
        >>> is_missing(float("nan")), is_missing(" "), is_missing(0)
        (True, True, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def as_text(value: Any) -> str:
    """A value as a name; whole floats without their point, so that 1.0 and 1 are one class.

    Example:
        >>> from metamae.data.own.facts import as_text
        >>> as_text(1.0), as_text("a "), as_text(True), as_text(None)
        ('1', 'a', 'True', '')
    """
    if is_missing(value):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def number_groups(values: Values, name: str) -> Array:
    """A number for each different group."""
    texts = [as_text(value) for value in values]
    if "" in texts:
        raise DataError(
            f"expected a group in every row, {name!r} has none in {texts.count('')} rows (first: "
            f"row {texts.index('')}); fill them in, or drop these rows"
        )
    numbers: Array = np.unique(np.asarray(texts, object).astype(str), return_inverse=True)[1]
    return numbers.reshape(-1)


_MARKS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "train"),
    **dict.fromkeys(("test", "testing", "te", "holdout"), "test"),
    **dict.fromkeys(("pretrain", "pretraining", "unlabelled", "unlabeled"), "pretrain"),
}


def mark_of(value: Any) -> str:
    """``train``, ``test`` or ``pretrain``, empty for any other word; validation rows train.

    Example:
        >>> from metamae.data.own.facts import mark_of
        >>> mark_of("Training"), mark_of("val"), mark_of("x")
        ('train', 'train', '')
    """
    return _MARKS.get(as_text(value).lower(), "")


def read_marks(values: Values, name: str) -> Values:
    """Which rows are for training and which for testing, as a column says.

    Raises:
        DataError: another word.
    """
    marks = [mark_of(value) for value in values]
    if "" in marks:
        row = marks.index("")
        raise DataError(
            f"expected train, test, validation or pretrain in {name!r}, got "
            f"{shown(as_text(values[row]))} in row {row} ({marks.count('')} such rows)"
        )
    return marks


def find_name(name: str, known: Sequence[str], what: str) -> str:
    """A name that is there.

    Raises:
        DataError: it is not; the message has the nearest one.
    """
    if name in known:
        return name
    listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    raise DataError(f"expected {what} among {listed or 'none'}, {suggest(name, known)}")


def is_file(name: str) -> bool:
    """Whether a name is a file rather than a column."""
    return Path(name).suffix.lower() in (".npy", ".csv", ".tsv", ".txt") and Path(name).is_file()


def match_ids(table: Mapping[str, Any], ids: Sequence[str], name: str) -> Values:
    """Values of a table from ids to values, in the order of ``ids``.

    Raises:
        DataError: ids without a value.
    """
    absent = [key for key in ids if key not in table]
    if absent:
        raise DataError(
            f"expected a line for every file in {name}, found none for {len(absent)} (first: "
            f"{absent[0]})"
        )
    return [table[key] for key in ids]
