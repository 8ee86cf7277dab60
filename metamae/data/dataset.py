"""What a data set is to the rest of the package: partitions, inputs, a task and a data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metamae.errors import DataError
from metamae.inputs import Inputs, LabelledBatch, Tokens

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a probe predicts, and the one metric it is judged by."""

    kind: Literal["classification", "binary", "regression"]
    metric: Literal["accuracy", "weighted_f1", "spearman"]
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Outputs of a linear probe: one per class, or a single one."""
        return len(self.classes) if self.kind == "classification" else 1


@dataclass(frozen=True)
class Affine:
    """Scaling of raw values, ``(x - mean) / scale``; both broadcast against one example."""

    mean: Array
    scale: Array

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
    """

    arrays: Mapping[str, Array]
    inputs: Inputs
    scaling: Mapping[str, Affine] = field(default_factory=dict)
    labels: Array | None = None

    def __post_init__(self) -> None:
        """Check that all arrays have the same number of examples."""
        rows = {name: len(array) for name, array in self.arrays.items()}
        if self.labels is not None:
            rows["labels"] = len(self.labels)
        if len(set(rows.values())) != 1:
            raise DataError(f"expected as many rows in every array, got {rows}")

    def __len__(self) -> int:
        """Number of examples."""
        return len(next(iter(self.arrays.values())))

    def batch(self, index: Tensor | Sequence[int] | slice) -> dict[str, Tensor]:
        """Scaled examples, one tensor per input.

        Raises:
            DataError: a value that is not finite, or a symbol outside the vocabulary; the message
                names the row.
        """
        rows = index.numpy() if isinstance(index, Tensor) else index
        return {spec.name: self._convert(spec, rows) for spec in self.inputs}

    def _convert(self, spec: Any, rows: Any) -> Tensor:
        raw = np.asarray(self.arrays[spec.name][rows])
        numbers = np.arange(len(self))[rows]
        if isinstance(spec, Tokens):
            bad = (raw < 0) | (raw >= spec.vocabulary)
            _refuse(bad, numbers, spec.name, f"symbols below {spec.vocabulary}", raw)
            return torch.from_numpy(raw.astype(np.int64))
        with np.errstate(over="ignore"):
            values = raw.astype(np.float32)
        _refuse(~np.isfinite(values), numbers, spec.name, "finite values", raw)
        x = torch.from_numpy(values)
        scaling = self.scaling.get(spec.name)
        return x if scaling is None else scaling(x)


def labelled_batch(data: Partition, index: Tensor | Sequence[int] | slice) -> LabelledBatch:
    """Scaled examples with their labels: int64 classes, or float32 numbers.

    Raises:
        DataError: a partition without labels, labels that are not finite, or unusable examples.
    """
    if data.labels is None:
        raise DataError("expected labelled examples, got a partition without labels")
    rows = index.numpy() if isinstance(index, Tensor) else index
    raw = np.asarray(data.labels[rows])
    real = np.issubdtype(raw.dtype, np.floating)
    if real:
        _refuse(~np.isfinite(raw), np.arange(len(data))[rows], "labels", "finite values", raw)
    labels = torch.from_numpy(raw.astype(np.float32 if real else np.int64))
    return LabelledBatch(data.batch(index), labels)


def _refuse(bad: Array, numbers: Array, name: str, expected: str, raw: Array) -> None:
    if not bad.any():
        return
    place = np.argwhere(bad)[0]
    count = int(bad.reshape(len(bad), -1).any(1).sum())
    raise DataError(
        f"expected {expected} in input {name!r}, got {raw[tuple(place)]} in row "
        f"{numbers[place[0]]} ({count} such rows in this batch); clean or drop these rows"
    )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set ready for pretraining and probing.

    Attributes:
        name: Name it is asked for by.
        inputs: Specifications of its inputs.
        task: What the probe predicts.
        pretrain: Unlabelled examples.
        train: Labelled examples for the probe.
        test: Labelled examples for the reported number, and for nothing else.
        stands_for: Name of the full data set whose paper preset fits this one.
        card: Provenance, licence, split rule and known shortcuts.
    """

    name: str
    inputs: Inputs
    task: Task
    pretrain: Partition
    train: Partition
    test: Partition
    stands_for: str
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that labels are there and that no class is absent from training."""
        for split in ("train", "test"):
            if getattr(self, split).labels is None:
                raise DataError(f"expected labels in the {split} partition of {self.name!r}")
        if self.task.kind != "regression":
            check_classes(self.train.labels, self.test.labels, self.task.classes)


def check_classes(train: Array | None, test: Array | None, classes: Sequence[str]) -> None:
    """Every label is a class, and every class of the test rows occurs in the training rows.

    Raises:
        DataError: naming the labels or classes at fault.
    """
    assert train is not None
    assert test is not None
    seen, asked = set(np.unique(train).tolist()), set(np.unique(test).tolist())
    unknown = sorted(label for label in seen | asked if not 0 <= label < len(classes))
    if unknown:
        raise DataError(f"expected labels from 0 to {len(classes) - 1}, got {unknown}")
    if asked - seen:
        absent = ", ".join(classes[int(label)] for label in sorted(asked - seen))
        raise DataError(
            f"expected every tested class among the training rows, none is there for: {absent}; "
            "add labelled rows of these classes, or drop them from the test rows"
        )
