"""What a data set is to the rest of the package: partitions, inputs, a task and a data card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metamae.data.mapped import read_ahead
from metamae.errors import ConfigError, DataError
from metamae.inputs import Image, Inputs, InputSpec, LabelledBatch, Signal, Tabular, Tokens

Array = NDArray[Any]
PartitionName = Literal["pretrain", "train", "test"]


class Rows(Protocol):
    """What a partition needs of an array: its length, and rows by index array, list or slice."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, rows: Any) -> Any:
        """Rows as an array."""
        ...


@dataclass(frozen=True)
class Selected:
    """Rows of a (memory-mapped) array in the order of an index, read when asked for."""

    array: Rows
    index: Array

    def __len__(self) -> int:
        """Number of selected rows."""
        return len(self.index)

    def __getitem__(self, rows: Any) -> Array:
        """Read rows by their place in the selection."""
        read_ahead(self.index, rows)
        index = np.asarray(self.index[rows])
        read_ahead(self.array, index)
        picked: Array = self.array[index]
        return picked


def _told(name: str, rows: Rows) -> str:
    """Name, and shape and type of an example where the array knows them."""
    array: Any = rows.array if isinstance(rows, Selected) else rows
    if not hasattr(array, "shape"):
        return name
    return f"{name} {tuple(array.shape[1:])} {array.dtype}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a probe predicts, and the one metric it is judged by.

    Attributes:
        kind: ``token_classification`` predicts one class per token, with labels ``(N, L)``.
        metric: Name of the metric.
        classes: Names of the classes.
        ignore: Label that the metric leaves out, such as the class of padding; it is learned like
            any other class.
        complete: Whether every tested class must occur among the training rows. Large data sets
            with rare classes cannot promise it.
    """

    kind: Literal["classification", "binary", "regression", "token_classification"]
    metric: Literal["accuracy", "weighted_f1", "spearman"]
    classes: tuple[str, ...] = ()
    ignore: int | None = None
    complete: bool = True

    @classmethod
    def of_classes(cls, classes: Iterable[str] = (), *, complete: bool = True) -> Task:
        """One class per example, judged by accuracy; no names where only the files know them."""
        names = tuple(classes)
        return cls(kind="classification", metric="accuracy", classes=names, complete=complete)

    def __post_init__(self) -> None:
        """Check that a binary task has two classes, where they are named already."""
        if self.kind == "binary" and len(self.classes) not in (0, 2):
            raise DataError(
                f"expected two classes in a binary task, got {len(self.classes)}; use kind "
                "'classification'"
            )

    @property
    def outputs(self) -> int:
        """Outputs of a linear probe: one per class, or a single one."""
        return len(self.classes) if self.kind.endswith("classification") else 1


@dataclass(frozen=True)
class Affine:
    """Scaling of raw values, ``(x - mean) / scale``; both broadcast against one example."""

    mean: Array
    scale: Array

    def __post_init__(self) -> None:
        """Check that no value can be scaled to NaN or infinity."""
        mean, scale = np.asarray(self.mean), np.asarray(self.scale)
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale != 0).all()):
            raise DataError(
                "expected a scaling with finite numbers and no scale of 0, got others; look at the "
                "data that it was computed from"
            )

    @classmethod
    def standardise(cls, values: Array, axes: tuple[int, ...]) -> Affine:
        """Mean and deviation over ``axes`` (which hold the examples too) of unlabelled data."""
        values = values.astype(np.float64)
        mean, scale = values.mean(axes, keepdims=True)[0], values.std(axes, keepdims=True)[0]
        return cls(mean.astype(np.float32), np.maximum(scale, 1e-6).astype(np.float32))

    @classmethod
    def divide(cls, by: float) -> Affine:
        """Division by a constant."""
        return cls(np.float32(0.0) * np.ones(()), np.float32(by) * np.ones(()))

    def __call__(self, x: Tensor) -> Tensor:
        """Scale a batch."""
        mean, scale = (torch.from_numpy(np.asarray(a, np.float32)) for a in (self.mean, self.scale))
        return (x - mean) / scale


@dataclass(frozen=True)
class Partition:
    """Examples of one split, held raw (in memory or memory-mapped) and converted by batch.

    Attributes:
        arrays: Input name to raw array, examples first.
        inputs: Specifications of the inputs.
        scaling: Input name to scaling; absent inputs are taken as they are.
        labels: Class indices, or numbers for regression; ``None`` for unlabelled examples.
        groups: Which subject, cluster or place a row comes from, so that validation cuts do not
            share one; ``None`` where rows are independent. Never an input.
    """

    arrays: Mapping[str, Rows]
    inputs: Inputs
    scaling: Mapping[str, Affine] = field(default_factory=dict)
    labels: Array | None = None
    groups: Array | None = None

    def __post_init__(self) -> None:
        """Check that all arrays have the same number of examples."""
        rows = {name: len(array) for name, array in self.arrays.items()}
        for name in ("labels", "groups"):
            if getattr(self, name) is not None:
                rows[name] = len(getattr(self, name))
        if len(set(rows.values())) != 1:
            raise DataError(f"expected as many rows in every array, got {rows}")

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.arrays.values())))

    def __repr__(self) -> str:
        """Sizes and kinds in a line, not the data."""
        inputs = [_told(name, rows) for name, rows in self.arrays.items()]
        more = [name for name in ("labels", "groups") if getattr(self, name) is not None]
        return f"Partition({len(self)} examples: {', '.join([*inputs, *more])})"

    def batch(self, index: Tensor | Sequence[int] | slice) -> dict[str, Tensor]:
        """Scaled examples, one tensor per input.

        Raises:
            DataError: a value that is not finite, or a symbol outside the vocabulary; the message
                names the row. Rows that are not there.
        """
        rows = index.numpy() if isinstance(index, Tensor) else index
        with _named_rows(len(self)):
            return {spec.name: self._convert(spec, rows) for spec in self.inputs}

    def _convert(self, spec: Any, rows: Any) -> Tensor:
        read_ahead(self.arrays[spec.name], rows)
        raw = np.asarray(self.arrays[spec.name][rows])
        _refuse_kind(raw, spec.name)
        numbers = _Numbers(rows, len(self))
        if isinstance(spec, Tokens):
            if raw.dtype.kind == "f":  # a symbol is a whole number, however it is stored
                _refuse(raw != np.floor(raw), numbers, spec, "whole numbers", raw)
            bad = (raw < 0) | (raw >= spec.vocabulary)
            _refuse(bad, numbers, spec, f"symbols below {spec.vocabulary}", raw)
            return torch.from_numpy(raw.astype(np.int64))
        with np.errstate(over="ignore"):
            values = raw.astype(np.float32)
        bad = np.isinf(values) if getattr(spec, "gaps", False) else ~np.isfinite(values)
        _refuse(bad, numbers, spec, "finite values", raw)
        x = torch.from_numpy(values)
        scaling = self.scaling.get(spec.name)
        if scaling is None:
            return x
        spec.check(x)  # of another shape, the scaling would not fit either
        return scaling(x)


@contextmanager
def _named_rows(count: int) -> Iterator[None]:
    try:
        yield
    except IndexError as fault:
        raise DataError(f"expected rows from 0 to {count - 1}, got others ({fault})") from fault


def labelled_batch(data: Partition, index: Tensor | Sequence[int] | slice) -> LabelledBatch:
    """Scaled examples with their labels: int64 classes, or float32 numbers.

    Raises:
        DataError: a partition without labels, labels that are not finite, or unusable examples.
    """
    if data.labels is None:
        raise DataError("expected labelled examples, got a partition without labels")
    rows = index.numpy() if isinstance(index, Tensor) else index
    with _named_rows(len(data)):
        raw = np.asarray(data.labels[rows])
    _refuse_kind(raw, "labels")
    real = np.issubdtype(raw.dtype, np.floating)
    if real:
        _refuse(~np.isfinite(raw), _Numbers(rows, len(data)), None, "finite values", raw)
    labels = torch.from_numpy(raw.astype(np.float32 if real else np.int64))
    return LabelledBatch(data.batch(index), labels)


def _refuse_kind(raw: Array, name: str) -> None:
    if raw.dtype.kind not in "fiub":
        raise DataError(
            f"expected real numbers in input {name!r}, got values of type {raw.dtype}; convert them"
        )


class _Numbers:
    """Which rows of a partition an index names; told for an error alone, for it takes them all."""

    def __init__(self, rows: Any, count: int) -> None:
        self.rows, self.count = rows, count
        if not isinstance(rows, slice):
            index = np.asarray(rows)
            if (
                index.dtype != bool
                and index.size
                and not -count <= index.min() <= index.max() < count
            ):
                raise IndexError(f"{index.min()} to {index.max()}")

    def __getitem__(self, place: Any) -> int:
        return int(np.arange(self.count)[self.rows][place])


def _refuse(
    bad: Array, numbers: _Numbers, spec: InputSpec | None, expected: str, raw: Array
) -> None:
    if not bad.any():
        return
    place = np.argwhere(bad)[0]
    count = int(bad.reshape(len(bad), -1).any(1).sum())
    where = "" if spec is None else describe_place(spec, place[1:])
    name = "labels" if spec is None else spec.name
    raise DataError(
        f"expected {expected} in input {name!r}, got {raw[tuple(place)]} in row "
        f"{numbers[place[0]]} ({count} such rows in this batch{where and f'; this one {where}'}); "
        "clean or drop these rows"
    )


def describe_place(spec: InputSpec, place: Sequence[int] | Array) -> str:
    """Where in an example a value is, in words.

    Example:
        >>> from metamae.data.dataset import describe_place
        >>> from metamae.inputs import Tabular
        >>> describe_place(Tabular(name="row", columns=2, column_names=("age", "size")), [1])
        "in column 1 ('size')"
    """
    numbers = [int(number) for number in place]
    if isinstance(spec, Tokens):
        return f"at position {numbers[0]}"
    if isinstance(spec, Signal):
        return f"in {describe_channel(spec, numbers[0])}, at step {numbers[1]}"
    if isinstance(spec, Image):
        return f"in {describe_channel(spec, numbers[0])}, at pixel ({numbers[1]}, {numbers[2]})"
    if isinstance(spec, Tabular):
        return f"in {describe_channel(spec, numbers[0])}"
    return f"at {tuple(numbers)}"


def describe_channel(spec: InputSpec, number: int) -> str:
    """A channel or column by number, and by name where it has one."""
    word = "column" if isinstance(spec, Tabular) else "channel"
    names = getattr(spec, f"{word}_names", ())
    return f"{word} {number}" + (f" ({names[number]!r})" if number < len(names) else "")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set ready for pretraining, probing, or both.

    Attributes:
        name: Name it is asked for by.
        inputs: Specifications of its inputs.
        task: What the probe predicts; ``None`` for a set made for pretraining only.
        pretrain: Unlabelled examples; ``None`` for a set made for probing only.
        train: Labelled examples for the probe.
        test: Labelled examples for the reported number, and for nothing else.
        stands_for: Name of the full data set whose paper preset fits this one, if one does.
        card: Provenance, licence, split rule and known shortcuts.
        recipe: How the user's own files became the arrays, plain values; empty for sets by name.
    """

    name: str
    inputs: Inputs
    task: Task | None = None
    pretrain: Partition | None = None
    train: Partition | None = None
    test: Partition | None = None
    stands_for: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that labels are there and that no class is absent from training."""
        labelled: tuple[PartitionName, PartitionName] = ("train", "test")
        there = [split for split in labelled if getattr(self, split) is not None]
        for split in there:
            if self.need(split).labels is None:
                raise DataError(f"expected labels in the {split} partition of {self.name!r}")
        if bool(there) != (self.task is not None) or len(there) == 1:
            raise DataError(
                f"expected {self.name!r} to have a task, training and test rows, or none of them, "
                f"got {'a' if self.task else 'no'} task and {there or 'no labelled rows'}"
            )
        if self.task is not None and self.task.kind != "regression":
            train, test = self.need("train").labels, self.need("test").labels
            check_classes(train, test, self.task.classes, complete=self.task.complete)

    def __repr__(self) -> str:
        """Name, task and partitions, a line each, not the data.

        Example:
            >>> from metamae import load_dataset
            >>> load_dataset("digits")
            Dataset('digits', classification of 10 classes by accuracy,
                pretrain=Partition(3823 examples: image (1, 8, 8) uint8),
                train=Partition(3823 examples: image (1, 8, 8) uint8, labels),
                test=Partition(1797 examples: image (1, 8, 8) uint8, labels))
        """
        task = "no task"
        if self.task is not None:
            classes = f" of {len(self.task.classes)} classes" if self.task.classes else ""
            task = f"{self.task.kind}{classes} by {self.task.metric}"
        parts = [
            f"{part}={getattr(self, part)!r}"
            for part in ("pretrain", "train", "test")
            if getattr(self, part) is not None
        ]
        return f"Dataset({self.name!r}, " + ",\n    ".join([task, *parts]) + ")"

    def need(self, part: PartitionName) -> Partition:
        """One partition, which must be there.

        Raises:
            DataError: this set has no such partition; the message says what it is for.

        Example:
            >>> from metamae import load_dataset
            >>> len(load_dataset("basic_motions").need("test"))
            40
        """
        if not isinstance(part, str) or part not in ("pretrain", "train", "test"):
            raise DataError(f"expected a partition among pretrain, train, test, got {part!r}")
        partition: Partition | None = getattr(self, part)
        if partition is None:
            use, other = (
                ("probing", "pretrain on another set and probe on this one")
                if part == "pretrain"
                else ("pretraining", "probe on another set")
            )
            raise DataError(
                f"expected a {part} partition, {self.name!r} has none: it is for {use} only; "
                f"{other}"
            )
        return partition

    def need_task(self) -> Task:
        """The probe's task, which must be there.

        Raises:
            DataError: this set is for pretraining only.
        """
        if self.task is None:
            self.need("train")
            raise AssertionError("a data set with labelled rows has a task")
        return self.task


def choose_token_size(
    name: str, chosen: Sequence[int], default: tuple[int, ...]
) -> tuple[int, ...]:
    """The token size asked for, or the data set's own when that is empty.

    Raises:
        ConfigError: more numbers than a token of the set has sides.
    """
    if len(chosen) > len(default):
        raise ConfigError(
            f"expected {len(default)} numbers as the token size of {name!r}, got {list(chosen)}"
        )
    return tuple(chosen) or default


def check_classes(
    train: Array | None, test: Array | None, classes: Sequence[str], *, complete: bool = True
) -> None:
    """Every label is a class, and every class of the test rows occurs in the training rows.

    Args:
        train: Labels of the training rows.
        test: Labels of the test rows.
        classes: Names of the classes.
        complete: Whether a test class without training rows is an error.

    Raises:
        DataError: naming the labels or classes at fault.
    """
    assert train is not None
    assert test is not None
    for labels in (train, test):
        if np.asarray(labels).dtype.kind not in "fiub":
            raise DataError(
                f"expected labels as numbers of classes, got values of type "
                f"{np.asarray(labels).dtype}; number them in the order of the task's classes"
            )
    seen, tested = set(np.unique(train).tolist()), set(np.unique(test).tolist())
    whole = range(len(classes))
    unknown = sorted(label for label in seen | tested if label not in whole)
    if unknown:
        raise DataError(f"expected labels from 0 to {len(classes) - 1}, got {unknown}")
    if complete and tested - seen:
        absent = ", ".join(classes[int(label)] for label in sorted(tested - seen))
        raise DataError(
            f"expected every tested class among the training rows, none is there for: {absent}; "
            "add labelled rows of these classes, or drop them from the test rows"
        )
