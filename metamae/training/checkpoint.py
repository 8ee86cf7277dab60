"""Checkpoints: written atomically, loaded without running code, enough to rebuild and resume."""

from __future__ import annotations

import errno
import math
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch

from metamae.arguments import as_path
from metamae.config.schema import Config
from metamae.data.formats.zips import check_directory
from metamae.errors import CheckpointError, ConfigError, is_systems, shown
from metamae.files import clear_leftovers, replacing

FORMAT = 1

_REFUSED = ("write", "unexpected pos", "iostream error")
"""In what torch says where the system refused to write."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after ``step`` optimisation steps.

    Attributes:
        config: The resolved configuration.
        step: Optimisation steps taken.
        model: State dict of the method.
        optimiser: State dict of the optimiser, or of the multilevel problem around it.
        history: Logged series, see :class:`metamae.training.run_folder.History`.
        seconds: Time spent in optimisation steps.
        provenance: Versions and revision that wrote it.
        data: Fingerprint of the data it was trained on; empty in files of earlier revisions.
    """

    config: Config
    step: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    history: dict[str, list[list[float]]]
    seconds: float
    provenance: dict[str, str]
    data: str = ""

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never a part."""
        payload = dict(vars(self)) | {"format": FORMAT, "config": self.config.to_dict()}
        save_tensors(path, payload)

    def check(self) -> None:
        """Check types, for checkpoints come from files.

        Raises:
            TypeError: naming what is of another type.
        """
        kinds: dict[str, Any] = {name: dict for name in ("model", "optimiser", "provenance")}
        for name, kind in (kinds | {"step": int, "seconds": (int, float)}).items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"{name} is of type {type(value).__name__}")
        if not isinstance(self.data, str) or not re.fullmatch("([0-9a-f]{16})?", self.data):
            raise TypeError(f"the fingerprint of the data is {shown(self.data)}")
        if not 0 <= self.step < 1 << 53 or not math.isfinite(self.seconds) or self.seconds < 0:
            raise TypeError(f"step is {self.step}, seconds are {self.seconds}")
        check_series(self.history)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Checkpoint:
        """Read a checkpoint (``weights_only=True``: no code in the file is run).

        Raises:
            CheckpointError: the file is missing, damaged, or of another format.
        """
        path = as_path(path, "a checkpoint")
        if not path.is_file():
            raise CheckpointError(
                f"expected a checkpoint at {path}, found none; "
                "check the path, or pretrain first (without --resume)"
            )
        clear_leftovers(path)
        payload = read_intact(path, device)
        number = payload.pop("format", None) if isinstance(payload, dict) else None
        if type(number) is not int or number != FORMAT:
            raise CheckpointError(
                f"expected a metamae checkpoint of format {FORMAT} at {path}, got another file; "
                "check the path"
            )
        try:
            config = Config.from_dict(payload.pop("config", None))
            checkpoint = cls(config=config, **payload)
            checkpoint.check()
            return checkpoint
        except (ConfigError, TypeError, ValueError, RecursionError) as fault:
            raise CheckpointError(
                f"expected a checkpoint of this version at {path}: {fault}; pretrain again"
            ) from fault


def check_series(series: Any) -> None:
    """Raise ``TypeError`` unless these are logged series: names to pairs of finite numbers."""
    if not isinstance(series, dict):
        raise TypeError(f"expected names and their series, got {type(series).__name__}")
    for name, points in series.items():
        if not isinstance(name, str) or not isinstance(points, list):
            raise TypeError(f"expected a list of pairs for each name, got {type(points).__name__}")
        for point in points:
            pair = point if isinstance(point, list | tuple) else ()
            if len(pair) != 2 or not all(type(value) in (int, float) for value in pair):
                raise TypeError(f"expected pairs of numbers in {name[:40]!r}")


def save_tensors(path: Path, payload: object) -> None:
    """``torch.save``, atomically.

    Raises:
        OSError: the system refused to write, for instance because the disk is full.
    """
    with replacing(path) as temporary:
        try:
            torch.save(payload, temporary)
        except RuntimeError as fault:  # how torch reports what the system refused
            if not any(words in str(fault) for words in _REFUSED):
                raise
            free = shutil.disk_usage(path.parent).free >> 20
            raise OSError(
                errno.EIO,
                f"the system refused to write a file ({free} MiB are free on its disk; a quota "
                "may be smaller); make room, then go on from what is there",
                str(path),
            ) from fault


def read_intact(path: Path, device: torch.device | str) -> Any:
    """Load a file of ``torch.save`` after verifying its checksums, which torch does not.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain values.
        OSError: it cannot be opened.
    """
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            broken = _broken_member(archive, file)
        if broken is None:
            return torch.load(path, map_location=device, weights_only=True)
        reason = f"wrong checksum of {broken}"
    except pickle.UnpicklingError:
        reason = "it holds more than tensors and plain values"
    except torch.OutOfMemoryError:
        raise
    # What a changed byte makes of a zip archive or of a pickle has no common name.
    except Exception as fault:
        if is_systems(fault):
            raise
        reason = " ".join(str(fault).split()) or type(fault).__name__
    raise CheckpointError(
        f"expected a readable checkpoint at {path}, got a damaged file ({reason}); "
        "delete its folder and run again"
    )


def _broken_member(archive: ZipFile, file: Any) -> str | None:
    """The first member with a wrong checksum; torch never packs members, so that is damage too."""
    check_directory(archive, file)
    for info in archive.infolist():
        if info.compress_type != ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{info.filename} is packed, or of another size than it says")
        if info.external_attr or info.is_dir():  # torch would read nothing of a folder, and go on
            raise ValueError(f"{info.filename} is marked as a folder")
    return archive.testzip()
