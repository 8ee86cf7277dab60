"""Data sets: embedded pocket sets, and the full DABS sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metamae.arguments import as_path, check_text
from metamae.data.dataset import Affine, Dataset, Partition, Task
from metamae.data.pocket import POCKET, load_pocket, read_card, stands_for
from metamae.data.preparing.prepared import Prepared
from metamae.data.sources import SOURCES, get_source
from metamae.errors import DataError, suggest

__all__ = [
    "POCKET",
    "SOURCES",
    "Affine",
    "Dataset",
    "Partition",
    "Prepared",
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
        name: A pocket set (:data:`POCKET`), or a full set that was prepared
            (:data:`~metamae.data.sources.SOURCES`).
        data_dir: Folder of full DABS data; pocket sets do not need it.
        token_size: Steps per token, or patch height and width; the set's own when empty.

    Raises:
        DataError: an unknown name, a full data set that is not prepared yet, or a damaged file.

    Example:
        >>> from metamae.data import load_dataset
        >>> sensors = load_dataset("sensors")
        >>> sensors.need("pretrain").batch([0, 1])["signal"].shape
        torch.Size([2, 6, 128])
    """
    check_text(name, "a data set")
    if name in POCKET:
        return load_pocket(name, tuple(token_size))
    if name not in SOURCES:
        known = (*POCKET, *SOURCES)
        raise DataError(f"expected a data set among {', '.join(known)}, {suggest(name, known)}")
    if data_dir is None:
        raise DataError(
            f"expected --data-dir, the folder with the full {name!r} data, got none; "
            f"an embedded set needs none: {', '.join(POCKET)}"
        )
    prepared = Prepared.open(get_source(name), as_path(data_dir, "data_dir"))
    prepared.refuse_changed()
    return prepared.dataset(token_size)
