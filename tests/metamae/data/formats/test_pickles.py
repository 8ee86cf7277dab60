"""Batches pickled by any Python are read; nothing in a pickle is run."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest

from metamae import DataError
from metamae.data.formats.pickles import read_batch

DATA = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("labels", [[3, 1, 0, 9], np.array([3, 1, 0, 9])])
def test_channels_come_first(protocol: int, labels: object) -> None:
    content = pickle.dumps({"data": DATA, "labels": labels}, protocol)
    images, found = read_batch(io.BytesIO(content), "x")
    assert images.shape == (4, 3, 32, 32)
    assert np.array_equal(images[2, 1, 5], DATA[2, 1024 + 160 : 1024 + 192])
    assert found.tolist() == [3, 1, 0, 9]


def test_a_batch_of_python_2_is_read() -> None:
    """Old pickles name numpy's modules by their old places and hold bytes as text."""
    content = pickle.dumps({"data": DATA, "labels": [0] * 4}, 2)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    assert np.array_equal(read_batch(io.BytesIO(old), "x")[0].reshape(4, -1), DATA)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": Evil(), "labels": []}), r"it asks for (posix|nt)\.system"),
        (pickle.dumps({"data": print, "labels": []}), r"it asks for builtins\.print"),
        (pickle.dumps({"data": DATA})[:-100], r"expected a pickled batch of images in batch_1"),
        (b"", r"expected a pickled batch of images in batch_1"),
        (b"<html>", r"expected a pickled batch of images in batch_1"),
        (pickle.dumps([1]), r"expected data and labels in batch_1, got list"),
        (pickle.dumps({"data": DATA}), r"expected data and labels in batch_1, got dict"),
        (
            pickle.dumps({"data": DATA[:, :-1], "labels": [0] * 4}),
            r"expected 4 rows of 3072 bytes in batch_1, got uint8 \(4, 3071\)",
        ),
        (
            pickle.dumps({"data": DATA, "labels": [0] * 3}),
            r"expected 3 rows of 3072 bytes in batch_1, got uint8 \(4, 3072\)",
        ),
    ],
)
def test_anything_else_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_batch(io.BytesIO(content), "batch_1")
