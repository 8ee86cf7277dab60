"""``metamae.load``."""

from __future__ import annotations

from pathlib import Path

import torch

from metamae.arguments import as_path
from metamae.artefact.encoder import Encoder
from metamae.artefact.folders import open_folder
from metamae.training.devices import choose_device


def load(run: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load an encoder from the folder of a run, or from one that was saved.

    In a run folder the checkpoint counts: it is what the run last reached. A folder without one
    needs ``model.safetensors`` and ``config.json``.

    Args:
        run: The folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        CheckpointError: no such folder, nothing in it that can be loaded, or a damaged file.
        ConfigError: a device that is not there.

    Example:
        >>> import metamae
        >>> from metamae.training import pretrain
        >>> config = metamae.make_config("basic_motions", overrides=["training.steps=1"])
        >>> motions = metamae.load_dataset("basic_motions")
        >>> _ = pretrain(config, motions, "run")
        >>> metamae.load("run").embed(motions.need("test")).shape
        (40, 128)
    """
    where = choose_device(str(device))
    return Encoder(*open_folder(as_path(run, "a run folder")), where)
