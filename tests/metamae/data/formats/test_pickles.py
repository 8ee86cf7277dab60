"""Tables and batches pickled by any pandas and Python are read; nothing in a pickle is run."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamae import DataError
from metamae.data.formats.pickles import read_batch, read_frame
from metamae.data.formats.unpickling import unpickle
from tests.metamae.data.packing import old_table

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


@pytest.mark.parametrize("version", ["2.2.3", "3.1.1"])
def test_a_pickled_table_is_read_without_pandas(version: str) -> None:
    """Columns waferMap, failureType, dieSize and label, pickled by these versions of pandas."""
    content = (Path(__file__).parent / "pickled" / f"pandas-{version}.pkl").read_bytes()
    table = read_frame(io.BytesIO(content), "x")
    assert sorted(table) == ["dieSize", "failureType", "label", "waferMap"]
    assert table["dieSize"].tolist() == [1.5, 2.0]
    assert table["label"].tolist() == [1, 0]
    assert table["failureType"][0] == "Center"
    assert table["waferMap"][0].tolist() == [[0, 1], [2, 1]]


def test_an_old_table_is_read_too() -> None:
    maps: list[Any] = [np.eye(2, dtype=np.uint8), np.ones((1, 3), np.uint8)]
    table = read_frame(io.BytesIO(old_table({"waferMap": maps, "n": [1, "two"]})), "x")
    assert table["n"].tolist() == [1, "two"]
    assert table["waferMap"][1].shape == (1, 3)


@pytest.mark.parametrize("value", [print, Path("x"), eval, np.load, pickle.loads, np.memmap])
def test_a_pickle_that_calls_anything_is_refused(value: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="which no table needs"):
        read_frame(io.BytesIO(pickle.dumps([value])), "x")


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps([1]), pickle.dumps({"a": 1})])
def test_what_is_no_table_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="expected a pickled table"):
        read_frame(io.BytesIO(content), "x.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_shrink_as_they_are_read(protocol: int, order: Any) -> None:
    """Each is passed once, whole; what it becomes stands wherever it is named."""
    large = [np.asarray(np.arange(600).reshape(20, 30) + n, order=order) for n in range(4)]
    cells = np.empty(5, object)
    cells[:] = [*large, large[0]]
    content = pickle.dumps({"cells": cells, "text": "x" * 500, "n": np.array([3])}, protocol)
    seen = []

    def shrink(values: Any) -> Any:
        seen.append(values.copy())
        return values[:1, :2] if values.ndim == 2 else values

    found = unpickle(io.BytesIO(content), "arrays", "x", table=False, shrink=shrink)
    wholes = [values for values in seen if values.ndim == 2]
    assert all(np.array_equal(a, b) for a, b in zip(wholes, large, strict=True))
    assert [cell.tolist() for cell in found["cells"]] == [[[n, n + 1]] for n in (0, 1, 2, 3, 0)]
    assert found["n"].tolist() == [3]
    assert found["text"] == "x" * 500


@pytest.mark.parametrize("protocol", [2, 5])
def test_what_shrinks_is_not_kept(protocol: int) -> None:
    """The bytes of arrays would otherwise stay in the table of what a pickle may ask for again."""
    cells = np.empty(40, object)
    cells[:] = [np.full((200, 200), n) for n in range(40)]  # 320 kB each
    content = pickle.dumps(cells, protocol)
    file = io.BytesIO(content)
    tracemalloc.start()
    unpickle(file, "x", "x", table=False, shrink=lambda values: values[:1, :1].copy())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(content) / 4
