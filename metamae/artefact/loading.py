"""From a run folder, or a saved one, to an encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from metamae.arguments import as_path
from metamae.artefact.encoder import Encoder
from metamae.errors import CheckpointError
from metamae.training.checkpoint import Checkpoint
from metamae.training.devices import choose_device
from metamae.training.model_folder import MODEL, read_model
from metamae.training.run_folder import CHECKPOINT, read_record, rebuild


def load(run: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load an encoder from the folder of a run, or from one that was saved.

    In a run folder the checkpoint counts: it is what the run last reached. A folder without one
    needs ``model.safetensors`` and ``config.json``.

    Args:
        run: The folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        CheckpointError: no such folder, nothing in it that can be loaded, or a damaged file.

    Example:
        >>> import metamae
        >>> from metamae.training import pretrain
        >>> config = metamae.make_config("basic_motions", overrides=["training.steps=1"])
        >>> motions = metamae.load_dataset("basic_motions")
        >>> _ = pretrain(config, motions, "run")
        >>> metamae.load("run").embed(motions.need("test")).shape
        (40, 128)
    """
    folder, where = as_path(run, "a run folder"), choose_device(str(device))
    if (folder / CHECKPOINT).is_file():
        trained = Checkpoint.load(folder / CHECKPOINT)
        record = read_record(folder, trained)
        state = trained.model
    elif (folder / MODEL).is_file():
        record, state = read_model(folder)
    else:
        there = "one with neither" if folder.is_dir() else "none"
        raise CheckpointError(
            f"expected a run folder with {CHECKPOINT}, or a saved model with {MODEL}, at {folder}, "
            f"found {there}; check the path, or run metamae pretrain first"
        )
    method = rebuild(record.config, record.description.inputs, state, folder)
    return Encoder(method.to(where), record, where)
