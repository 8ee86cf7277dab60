"""From a folder to a method with its weights, and to what belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metamae.errors import CheckpointError
from metamae.methods.method import Method
from metamae.training.checkpoint import Checkpoint
from metamae.training.model_folder import MODEL, read_model
from metamae.training.record import ModelRecord
from metamae.training.run_folder import CHECKPOINT, read_record, rebuild


def open_folder(folder: Path) -> tuple[Method[Any], ModelRecord]:
    """The trained method of a run folder or a saved model, on the CPU.

    In a run folder the checkpoint counts: it is what the run last reached.

    Raises:
        CheckpointError: no such folder, nothing in it that can be loaded, or a damaged file.
    """
    if (folder / CHECKPOINT).is_file():
        trained = Checkpoint.load(folder / CHECKPOINT)
        record, state = read_record(folder, trained), trained.model
    elif (folder / MODEL).is_file():
        record, state = read_model(folder)
    else:
        there = "one with neither" if folder.is_dir() else "none"
        raise CheckpointError(
            f"expected a run folder with {CHECKPOINT}, or a saved model with {MODEL}, at {folder}, "
            f"found {there}; check the path, or run metamae pretrain first"
        )
    return rebuild(record.config, record.description.inputs, state, folder), record
