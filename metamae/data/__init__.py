"""Data sets: embedded pocket sets and the full DABS sets by name, your own by path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamae.arguments import as_path, check_text
from metamae.data.dataset import Affine, Dataset, Partition, Task
from metamae.data.own import is_path, open_data
from metamae.data.own.sources import HOW
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
    "open_data",
    "read_card",
    "stands_for",
]


def load_dataset(
    name: str | Path,
    *,
    data_dir: Path | None = None,
    token_size: Sequence[int] = (),
    **options: Any,
) -> Dataset:
    """Load a data set by name, or open your own by path.

    Args:
        name: A pocket set (:data:`POCKET`), a full set that was prepared
            (:data:`~metamae.data.sources.SOURCES`), or a path.
        data_dir: Folder of full DABS data; pocket sets do not need it.
        token_size: Steps per token, or patch height and width; the set's own when empty.
        options: For a path, what :func:`metamae.data.own.open_data` takes, such as ``label``; it
            also tells what was guessed.

    Raises:
        DataError: an unknown name, a full data set that is not prepared yet, or a damaged file.

    Example:
        >>> from metamae.data import load_dataset
        >>> sensors = load_dataset("sensors")
        >>> sensors.need("pretrain").batch([0, 1])["signal"].shape
        torch.Size([2, 6, 128])
    """
    if not isinstance(name, Path):
        check_text(name, "a data set")
    if isinstance(name, Path) or is_path(name):
        return open_data(name, token_size=token_size, **options).dataset
    if options:
        raise DataError(
            f"expected {', '.join(options)} with a path to your own data, got the data set {name!r}"
        )
    if name in POCKET:
        return load_pocket(name, tuple(token_size))
    if name not in SOURCES:
        known = (*POCKET, *SOURCES)
        raise DataError(
            f"expected a data set among {', '.join(known)}, or {HOW}; {suggest(name, known)}"
        )
    if data_dir is None:
        raise DataError(
            f"expected --data-dir, the folder with the full {name!r} data, got none; "
            f"an embedded set needs none: {', '.join(POCKET)}"
        )
    prepared = Prepared.open(get_source(name), as_path(data_dir, "data_dir"))
    prepared.refuse_changed()
    return prepared.dataset(token_size)
