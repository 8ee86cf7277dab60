"""The fingerprint of a data set: equal for equal examples, labels and scaling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from metamae.data.dataset import Array, Dataset, Partition, Rows

SAMPLED = 256
"""Rows read of an array on disk whose checksum the data card knows."""
WHOLE = 2**30
"""Bytes up to which an array on disk without a known checksum is read whole."""
_BLOCK = 2**24


def fingerprint(dataset: Dataset) -> str:
    """Sixteen hexadecimal digits that other data do not share.

    Of arrays in memory every byte counts. Prepared sets on disk have checksums in their manifest,
    which count together with a sample of rows; other arrays on disk count whole up to a gibibyte
    and by a sample beyond it. Names, token sizes and the card's words do not count.

    Args:
        dataset: The data set.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.data.fingerprint import fingerprint
        >>> digits, sensors = load_dataset("digits"), load_dataset("sensors")
        >>> fingerprint(digits) == fingerprint(load_dataset("digits", token_size=(4, 4)))
        True
        >>> fingerprint(digits) == fingerprint(sensors)
        False
    """
    digest, known = hashlib.sha256(), _checksums(dataset)
    digest.update(json.dumps(known, sort_keys=True).encode())
    for name in ("pretrain", "train", "test"):
        part: Partition | None = getattr(dataset, name)
        digest.update(f"{name} {part is not None}".encode())
        if part is not None:
            for block in _partition(part, bool(known)):
                digest.update(block)
    return digest.hexdigest()[:16]


def _checksums(dataset: Dataset) -> dict[str, str]:
    """Of the arrays of a prepared set, from its manifest."""
    arrays = dataset.card.get("arrays", {})
    entries = arrays.items() if isinstance(arrays, dict) else ()
    return {
        str(name): str(entry["sha256"])
        for name, entry in entries
        if isinstance(entry, dict) and "sha256" in entry
    }


def _partition(part: Partition, known: bool) -> Iterator[bytes]:
    for name in sorted(part.arrays):
        yield f"input {name} {len(part)}".encode()
        yield from _rows(part.arrays[name], known)
    for name, values in (("labels", part.labels), ("groups", part.groups)):
        yield name.encode()
        if values is not None:
            yield from _array(np.asarray(values))
    for name, scaling in sorted(part.scaling.items()):
        yield f"scaling {name}".encode()
        yield from _array(np.asarray(scaling.mean))
        yield from _array(np.asarray(scaling.scale))


def _rows(rows: Rows, known: bool) -> Iterator[bytes]:
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap):
        yield from _array(rows)
        return
    count = len(rows)
    size = np.asarray(rows[0:1]).nbytes if count else 0
    if known or count * size > WHOLE:
        index = np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(np.int64))
        yield from _array(np.asarray(rows[index]))
        return
    step = max(1, _BLOCK // max(size, 1))
    for start in range(0, count, step):
        yield from _array(np.asarray(rows[start : start + step]))


def _array(values: Array) -> Iterator[Any]:
    yield f"{values.dtype.str} {values.shape}".encode()
    if values.dtype.hasobject:
        yield repr(values.tolist()).encode()
        return
    yield np.ascontiguousarray(values).tobytes()
