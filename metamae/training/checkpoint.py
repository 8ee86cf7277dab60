"""Checkpoints: written atomically, loaded without running code, enough to rebuild and resume."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from metamae.arguments import as_path
from metamae.config.schema import Config
from metamae.errors import CheckpointError, ConfigError
from metamae.files import replacing

FORMAT = 1


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
        with replacing(path) as temporary:
            torch.save(payload, temporary)

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
        payload = read_intact(path, device)
        if not isinstance(payload, dict) or payload.pop("format", None) != FORMAT:
            raise CheckpointError(
                f"expected a metamae checkpoint of format {FORMAT} at {path}, got another file; "
                "check the path"
            )
        try:
            config = Config.from_dict(payload.pop("config", None))
            return cls(config=config, **payload)
        except (ConfigError, TypeError) as fault:
            raise CheckpointError(
                f"expected a checkpoint of this version at {path}: {fault}; pretrain again"
            ) from fault


def read_intact(path: Path, device: torch.device | str) -> Any:
    """Load a file of ``torch.save`` after verifying its checksums, which torch does not."""
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return torch.load(path, map_location=device, weights_only=True)
        reason = f"wrong checksum of {broken}"
    except pickle.UnpicklingError:
        reason = "it holds more than tensors and plain values"
    except (RuntimeError, EOFError, BadZipFile, OSError, ValueError, KeyError) as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
    raise CheckpointError(
        f"expected a readable checkpoint at {path}, got a damaged file ({reason}); "
        "delete its folder and run again"
    )
