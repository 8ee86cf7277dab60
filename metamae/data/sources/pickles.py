"""Pickled batches of image archives, read without running any code that they might hold."""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError

_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Knows plain values and NumPy arrays, and refuses everything else that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(file: IO[bytes], name: str, *, side: int = 32) -> tuple[Array, Array]:
    """One batch of CIFAR-10 or ImageNet32: a pickled dict of ``data`` and ``labels``.

    Args:
        file: The file, as Python 2 or 3 wrote it.
        name: What the file is called in an error.
        side: Height and width of the images.

    Returns:
        uint8 ``(N, 3, side, side)`` and int64 ``(N,)``, labels as they are in the file.

    Raises:
        DataError: a damaged file, one that would run code, or other arrays than expected.
    """
    try:
        batch = _ArraysOnly(file, encoding="latin1").load()
    # A damaged pickle fails in as many ways as there are instructions in it.
    except Exception as fault:
        raise DataError(f"expected a pickled batch of images in {name}: {fault}") from fault
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise DataError(f"expected data and labels in {name}, got {type(batch).__name__}")
    data, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
    if data.dtype != np.uint8 or data.shape != (len(labels), 3 * side * side):
        raise DataError(
            f"expected {len(labels)} rows of {3 * side * side} bytes in {name}, got {data.dtype} "
            f"{data.shape}"
        )
    return data.reshape(-1, 3, side, side), labels.astype(np.int64)
