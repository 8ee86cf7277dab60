"""Labels as they stand in a file become a task: classes, or a number to rank by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metamae.data.dataset import Array, Task
from metamae.data.own.facts import Values, as_text
from metamae.errors import DataError, shown, suggest

FEW, MOST, ROWS_A_CLASS = 20, 200, 10
"""Whole numbers are classes where they take few values, or not too many with ten rows each."""


@dataclass(frozen=True)
class Targets:
    """A task and the label of every row.

    Attributes:
        task: What is predicted.
        codes: int64 classes, -1 where there is no label; or float64, NaN where there is none.
        remark: What the labels were taken for.
    """

    task: Task
    codes: Array
    remark: str

    @property
    def there(self) -> Array:
        """Which rows have a label."""
        return has_label(self.codes)

    def scale_of(self, training: Array | None) -> dict[str, float]:
        """Mean and deviation of numbers in training rows; nothing of classes.

        Their ranks are all that counts, and a probe learns standard numbers faster.
        """
        if self.codes.dtype.kind != "f" or training is None:
            return {}
        numbers = self.codes[training].astype(np.float64)
        return {"mean": float(numbers.mean()), "deviation": float(numbers.std()) or 1.0}


def scale_codes(codes: Array, scale: dict[str, float]) -> Array:
    """Numbers as a probe sees them; classes as they are."""
    if not scale:
        return codes
    scaled: Array = (codes.astype(np.float64) - scale["mean"]) / scale["deviation"]
    return scaled.astype(np.float32)


def has_label(codes: Array) -> Array:
    """Which rows have a label."""
    there: Array = ~np.isnan(codes) if codes.dtype.kind == "f" else codes >= 0
    return there


def read_targets(values: Values, name: str) -> Targets:
    """Decide what labels are, and number them.

    Texts are classes. Whole numbers are, where they take up to 20 values, or up to 200 with ten
    rows each; other numbers are ranked by (Spearman's correlation).

    Args:
        values: One a row; missing where a row is not labelled.
        name: What the label is called.

    Raises:
        DataError: no label at all, one class only, or texts that differ from row to row.

    Example:
        >>> from metamae.data.own.targets import read_targets
        >>> read_targets(["b", "a", None], "y").codes.tolist()
        [1, 0, -1]
        >>> read_targets([0.5, 2.25], "y").task.metric
        'spearman'
    """
    texts = [as_text(value) for value in values]
    labelled = [text for text in texts if text]
    if not labelled:
        raise DataError(f"expected labels in {name!r}, got {len(texts)} rows without one")
    different = sorted(set(labelled))
    if len(different) < 2:
        raise DataError(
            f"expected two classes or more in {name!r}, got one: {shown(different[0])} in "
            f"{len(labelled)} rows; leave the label out to pretrain without"
        )
    numbers = parse_numbers(texts)
    if numbers is not None and np.isinf(numbers).any():
        raise DataError(
            f"expected finite numbers in {name!r}, got infinite ones; empty these cells"
        )
    missing = len(texts) - len(labelled)
    rest = f"; {missing} rows have none and are for pretraining alone" if missing else ""
    if numbers is not None and not _are_classes(numbers, len(different)):
        task = Task(kind="regression", metric="spearman")
        remark = (
            f"label {name!r}: numbers to rank by (Spearman's correlation), {len(different)} "
            f"different ones{rest}; write them as texts to make classes of them"
        )
        return Targets(task, numbers, remark)
    if numbers is None and len(different) > max(FEW, len(labelled) // 2):
        raise DataError(
            f"expected classes or numbers in {name!r}, got {len(different)} different texts in "
            f"{len(labelled)} rows (such as {shown(different[0])}); name another label"
        )
    if numbers is not None:
        different.sort(key=float)
    codes = encode_classes(texts, different)
    shares = ", ".join(f"{c} ({(codes == n).sum()})" for n, c in enumerate(different[:6]))
    more = f" and {len(different) - 6} more" if len(different) > 6 else ""
    remark = f"label {name!r}: {len(different)} classes, {shares}{more}{rest}"
    return Targets(Task.of_classes(different), codes, remark)


def read_known(values: Values, task: Task, name: str) -> Array:
    """Labels of a task that is known.

    Raises:
        DataError: a class that the task does not have, or a text where it ranks numbers.
    """
    texts = [as_text(value) for value in values]
    if task.kind == "regression":
        numbers = parse_numbers(texts)
        if numbers is None or np.isinf(numbers).any():
            raise DataError(
                f"expected finite numbers in {name!r}, as the run's label has, got others"
            )
        return numbers
    unknown = sorted({text for text in texts if text} - set(task.classes))
    if unknown:
        raise DataError(
            f"expected the run's classes ({', '.join(task.classes[:12])}) in {name!r}, "
            f"{suggest(unknown[0], task.classes)} ({len(unknown)} unknown ones)"
        )
    return encode_classes(texts, task.classes)


def encode_classes(texts: Values, classes: Values) -> Array:
    """Place of each text among the classes, -1 for an empty one."""
    place = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.asarray([place[text] for text in texts], np.int64)


def parse_numbers(texts: Values) -> Array | None:
    """float64 numbers, NaN for empty texts; ``None`` where a text is none.

    Example:
        >>> from metamae.data.own.targets import parse_numbers
        >>> parse_numbers(["1", "", "2.5"]), parse_numbers(["1", "x"])
        (array([1. , nan, 2.5]), None)
    """
    try:
        return np.asarray([float(text) if text else np.nan for text in texts], np.float64)
    except ValueError:
        return None


def _are_classes(numbers: Array, different: int) -> bool:
    there = numbers[~np.isnan(numbers)]
    whole = bool((there == np.floor(there)).all())
    many = different <= MOST and len(there) >= ROWS_A_CLASS * different
    return whole and (different <= FEW or many)
