"""What a reader of files lists before it decodes any: names and labels, in the published order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from metamae.errors import DataError


@dataclass
class Listing:
    """Files of one partition and their labels, in order.

    Attributes:
        files: Names, relative to where the listing was made.
        labels: One class index per file; empty for unlabelled files.
    """

    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def add(self, file: str, label: int) -> None:
        """Append a labelled file."""
        self.files.append(file)
        self.labels.append(label)


@dataclass
class Halves:
    """The training and the test part of a labelled set, and the names of its classes."""

    classes: tuple[str, ...]
    train: Listing = field(default_factory=Listing)
    test: Listing = field(default_factory=Listing)


def cut_per_class(
    groups: Sequence[Sequence[Sequence[str]]], classes: Sequence[str], labels: Sequence[int]
) -> Halves:
    """Cut every class 80/20 after a shuffle that all classes share, as published.

    Class by class, the units are shuffled by one ``RandomState(42)``; the first ``int(0.8 n)`` of
    them go to training. A unit is one file, or several that must stay together.

    Args:
        groups: Per class, in the published order, its units; a unit is a sequence of files.
        classes: Names of all classes.
        labels: Class index of every group.

    Example:
        >>> from metamae.data.preparing.listing import cut_per_class
        >>> parts = cut_per_class([[["a"], ["b"], ["c"], ["d"], ["e"]]], ["x"], [0])
        >>> parts.train.files, parts.test.files
        (['b', 'e', 'c', 'a'], ['d'])
    """
    halves, random = Halves(tuple(classes)), np.random.RandomState(42)
    for units, label in zip(groups, labels, strict=True):
        order = np.arange(len(units))
        random.shuffle(order)
        cut = int(0.8 * len(units))
        for half, chosen in ((halves.train, order[:cut]), (halves.test, order[cut:])):
            for unit in chosen:
                for file in units[unit]:
                    half.add(file, label)
    return halves


def index_of(value: str, classes: Sequence[str], where: str) -> int:
    """Place of a class name among those known.

    Raises:
        DataError: another name.
    """
    try:
        return classes.index(value)
    except ValueError:
        known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise DataError(f"expected one of {known} in {where}, got {value!r}") from None
