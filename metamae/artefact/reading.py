"""Data of every form that people have at hand become examples of a trained encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metamae.data.dataset import Array, Dataset, Partition
from metamae.data.description import Description
from metamae.data.own import Examples, read_like
from metamae.data.own.arrays import SUFFIXES
from metamae.data.own.sources import read_source
from metamae.errors import DataError, InputError, reason_of
from metamae.inputs import InputSpec


def read_examples(
    data: Any,
    description: Description,
    *,
    label: str = "",
    ids: str = "",
    skip_bad: bool = False,
) -> Examples:
    """Examples in the order of the data.

    Args:
        data: An array, tensor or nested list (N, ...) where there is one input; a mapping of them
            by the names of the inputs; a partition of a data set, which brings its own scaling; a
            path or a data frame, where the run was trained on own data.
        description: What the encoder was trained on.
        label: Column, key or file with labels, for a path or a data frame.
        ids: Names of the rows, in the same way.
        skip_bad: Whether to leave out files that cannot be read.

    Raises:
        InputError, DataError: data of another form, in one line.
    """
    if isinstance(data, Partition):
        _check_kind(description, data)
        read = _numbered(data)
    elif isinstance(data, Dataset):
        raise DataError(
            "expected one partition of a data set, got all of it; pass data.need('test')"
        )
    elif description.recipe:
        source = data if _is_frame_or_path(data) else _plain(data)
        read = read_like(source, description, label=label, ids=ids, skip_bad=skip_bad)
    else:
        read = _numbered(description.partition(_by_name(data, description)))
    if len(read.partition) == 0:
        raise DataError("expected one example or more, got none")
    return read


def _check_kind(description: Description, data: Partition) -> None:
    ours, theirs = (
        "; ".join(spec.describe_token() for spec in inputs)
        for inputs in (description.inputs, data.inputs)
    )
    if ours != theirs:
        raise InputError(
            f"expected data like {description.name!r} ({ours}), which the encoder was trained on, "
            f"got others ({theirs})"
        )


def _numbered(partition: Partition) -> Examples:
    return Examples(partition=partition, ids=[str(row) for row in range(len(partition))])


def _is_frame_or_path(data: Any) -> bool:
    return isinstance(data, str | os.PathLike) or hasattr(data, "columns")


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: as_array(str(name), value) for name, value in data.items()}
    return as_array("x", data)


def _by_name(data: Any, description: Description) -> dict[str, Array]:
    """Raw arrays of a run on a data set by name, which knows no files but arrays."""
    names = [spec.name for spec in description.inputs]
    if isinstance(data, str | os.PathLike):
        if Path(data).suffix.lower() not in SUFFIXES:
            raise DataError(
                f"expected arrays in {' or '.join(SUFFIXES)} for a run on {description.name!r}, "
                f"which knows no other files, got {Path(data).name!r}; train on your data by their "
                "path to read such files"
            )
        data = read_source(data).data
        if len(names) == 1 and len(data) == 1:
            data = next(iter(data.values()))
    elif hasattr(data, "columns"):
        raise DataError(
            f"expected arrays for a run on {description.name!r}, which knows no data frames, got "
            f"{type(data).__name__}; pass frame.to_numpy(), or train on your data by their path"
        )
    if isinstance(data, Mapping):
        if sorted(map(str, data)) != sorted(names):
            raise InputError(f"expected a mapping with inputs {names}, got {list(data)}")
        return {name: as_array(name, data[name]) for name in names}
    if len(names) > 1:
        raise InputError(
            f"expected a mapping of arrays by the names of the inputs {names}, got "
            f"{type(data).__name__}"
        )
    return {names[0]: as_array(names[0], data)}


def example_sizes(spec: InputSpec) -> list[int]:
    """Sizes of one example of the package's own kinds of input; none of any other kind.

    Example:
        >>> from metamae.artefact.reading import example_sizes
        >>> from metamae.inputs import Signal
        >>> example_sizes(Signal(name="watch", channels=6, length=128, token_length=4))
        [6, 128]
    """
    names = ("channels", "length", "height", "width", "columns")
    return [int(getattr(spec, name)) for name in names if hasattr(spec, name)]


def as_array(name: str, data: Any) -> Array:
    """An array of examples from an array, a tensor or nested lists.

    Raises:
        DataError: something else, or examples of several shapes.

    Example:
        >>> from metamae.artefact.reading import as_array
        >>> as_array("row", [[1, 2], [3, 4]]).shape
        (2, 2)
    """
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy()
    if not isinstance(data, np.ndarray | Sequence) or isinstance(data, str | bytes):
        raise DataError(f"expected an array as input {name!r}, got {type(data).__name__}")
    try:
        array: Array = np.asarray(data)
    except ValueError as fault:
        raise DataError(
            f"expected examples of one shape in input {name!r}, got several ({reason_of(fault)}); "
            "cut or pad them to one length"
        ) from fault
    if array.ndim == 0:
        raise DataError(f"expected an array of examples as input {name!r}, got one number")
    if array.dtype.kind == "O":
        kind = type(array.flat[0]).__name__ if array.size else "nothing"
        raise DataError(
            f"expected numbers in input {name!r}, all examples of one shape, got objects such as "
            f"{kind}"
        )
    return array
