"""Data sets: embedded pocket sets, and the full DABS sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metamae.config import list_presets, near
from metamae.data.dataset import Affine, Dataset, Partition, Task
from metamae.data.pocket import POCKET, load_pocket, read_card, stands_for
from metamae.errors import DataError

__all__ = [
    "POCKET",
    "Affine",
    "Dataset",
    "Partition",
    "Task",
    "load_dataset",
    "load_pocket",
    "read_card",
    "stands_for",
]


def load_dataset(
    name: str, *, data_dir: Path | None = None, token_size: Sequence[int] = ()
) -> Dataset:
    """Load a data set by name.

    Args:
        name: A pocket set (:data:`POCKET`).
        data_dir: Folder of full DABS data; pocket sets do not need it.
        token_size: Steps per token, or patch height and width; the set's own when empty.

    Raises:
        DataError: an unknown name, a full data set (which this version cannot read yet), or a
            damaged file.

    Example:
        >>> from metamae.data import load_dataset
        >>> sensors = load_dataset("sensors")
        >>> sensors.pretrain.batch([0, 1])["signal"].shape
        torch.Size([2, 6, 128])
    """
    if name in POCKET:
        return load_pocket(name, tuple(token_size))
    full = list_presets("paper")
    if name in full:
        place = f" in {data_dir}" if data_dir is not None else ""
        raise DataError(
            f"expected an embedded data set ({', '.join(POCKET)}), got {name!r}: this version has "
            f"no reader for the full {name} data{place}; its embedded stand-in can be used instead"
        )
    known = (*POCKET, *full)
    raise DataError(f"expected a data set among {', '.join(known)}, {near(name, known)}")
