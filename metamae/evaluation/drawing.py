"""Which labelled rows a comparison learns from, and which it is judged on: alike for every method.

Decisions are taken on *validation cuts*: each draw holds a quarter of the training rows out (whole
groups, where rows have groups), draws its labels from the others, and is judged on what was held
out. Test rows are for the numbers that are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array, Task
from metamae.errors import DataError
from metamae.evaluation.few_labels import draw_labels
from metamae.evaluation.tuned import SHARE, hold_out

Stage = Literal["validation", "test"]
STAGES: tuple[Stage, ...] = ("validation", "test")

ALL = 0
"""Stands for all labels where a number of labels is asked for."""

SERIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Numbers of labels that are tried: a class, or of numbers in all."""

MOST_LABELS = 5000
"""Training rows that "all" labels are limited to, drawn once."""

MANY = 250
"""Labelled rows from which on a quarter of the draws will do: they differ less."""


@dataclass(frozen=True)
class Draw:
    """One draw of labels.

    Attributes:
        rows: Training rows whose labels are known.
        held: Training rows to judge by; ``None`` for the test rows.
    """

    rows: Array
    held: Array | None


@dataclass(frozen=True)
class Drawing:
    """All draws of one comparison, as functions of the labels and the seed.

    Args:
        task: What to predict; of one label an example.
        labels: ``(N,)`` labels of the training rows.
        groups: ``(N,)`` their groups.
        draws: Draws for every number of labels.
        seed: Seed of cuts and draws.

    Raises:
        DataError: a token-wise task, or rows that are too few for a cut.

    Example:
        >>> import numpy as np
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.drawing import ALL, Drawing
        >>> task = Task.of_classes(("a", "b"))
        >>> drawing = Drawing(task, np.tile([0, 1], 20))
        >>> drawing.numbers, len(drawing.draw(5, "validation", 0).rows)
        ((1, 2, 5, 10, 0), 10)
    """

    task: Task
    labels: Array
    groups: Array | None = None
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the task."""
        if self.task.kind == "token_classification":
            raise DataError(
                "expected one label an example for a comparison by numbers of labels, got a task "
                "with a label for every token; use metamae probe"
            )

    @property
    def by_class(self) -> bool:
        """Whether numbers of labels are of every class, or of rows in all."""
        return self.task.kind != "regression"

    @property
    def classes(self) -> int:
        """Number of classes; 1 for numbers."""
        return len(self.task.classes) if self.by_class else 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of labels, smallest first, and :data:`ALL` at the end.

        They end where a class has no more rows left beside a validation cut, or where half of the
        rows that :data:`ALL` takes are labelled; a model of numbers begins with five.
        """
        rare = min(self._smallest(self.cut(draw)[0]) for draw in range(self.draws))
        most = min(rare, min(len(self.labels), MOST_LABELS) // (2 * self.classes))
        first = 1 if self.by_class else 5
        return (*(n for n in SERIES if first <= n <= most), ALL)

    def count(self, number: int, stage: Stage) -> int:
        """Draws of a number of labels."""
        if number == ALL:
            return self.few if stage == "validation" else 1
        return self.draws if number * self.classes <= MANY else self.few

    @property
    def few(self) -> int:
        """Draws where all of them would be dear, or differ little: a quarter of them."""
        return min(self.draws, max(2, self.draws // 4))

    def draw(self, number: int, stage: Stage, draw: int) -> Draw:
        """One draw.

        Args:
            number: Labels a class, or in all; :data:`ALL` for every row.
            stage: Where it is judged.
            draw: Number of the draw.
        """
        fit, held = self.cut(draw) if stage == "validation" else (None, None)
        rows = np.arange(len(self.labels)) if fit is None else fit
        return Draw(rows[self._choose(self.labels[rows], number, draw)], held)

    def cut(self, draw: int) -> tuple[Array, Array]:
        """Training rows to draw labels from, and those held out."""
        seed = fold(self.seed, "comparison cut", draw)
        return hold_out(self.labels, self.groups, classes=self.by_class, seed=seed)

    def _choose(self, labels: Array, number: int, draw: int) -> Array:
        if number == ALL:
            index = np.arange(len(labels))
            if len(labels) <= MOST_LABELS:
                return index
            random = np.random.default_rng(fold(self.seed, "all labels", draw))
            return np.sort(random.choice(index, MOST_LABELS, replace=False))
        if self.by_class:
            return draw_labels(labels, number, classes=self.classes, seed=self.seed, draw=draw)
        random = np.random.default_rng(fold(self.seed, f"few labels {number}", draw))
        return random.choice(len(labels), number, replace=False)

    def _smallest(self, rows: Array) -> int:
        if not self.by_class:
            return len(rows)
        return int(np.bincount(self.labels[rows], minlength=self.classes).min())

    def counts(self) -> list[int]:
        """Training rows of every class."""
        return [int(n) for n in np.bincount(self.labels, minlength=self.classes)]

    def all_labels(self) -> float:
        """What :data:`ALL` is in labels a class (their mean), or in all."""
        return min(len(self.labels), MOST_LABELS) / self.classes


def overlap(count: int) -> float:
    r"""What the variance of the mean over cuts is, in units of the variance over cuts.

    Cuts of the same rows are no independent samples. With :math:`n` cuts that hold out a share
    :math:`s`, it is :math:`1/n + s/(1 - s)` (Nadeau and Bengio, 2003).

    Example:
        >>> from metamae.evaluation.drawing import overlap
        >>> round(overlap(20), 3)
        0.383
    """
    return 1 / count + SHARE / (1 - SHARE)


def nearest(numbers: Sequence[int], wanted: int) -> int:
    """The number of labels nearest to the wanted one, by ratio; :data:`ALL` only where alone.

    Example:
        >>> from metamae.evaluation.drawing import nearest
        >>> nearest((1, 2, 5, 10, 0), 5), nearest((1, 2, 0), 5)
        (5, 2)
    """
    some = [n for n in numbers if n != ALL]
    return min(some, key=lambda n: abs(np.log(n / wanted))) if some else ALL
