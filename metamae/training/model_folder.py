"""The model of a run as others read it: weights, what they mean, and a card in words.

``model.safetensors`` and ``config.json`` are all that :func:`metamae.load` needs of a folder, and
what a hub keeps; ``README.md`` is for people. The resumable checkpoint lies beside them in a run
folder, and is not needed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metamae.errors import CheckpointError, is_systems, reason_of
from metamae.files import read_json, replacing, write_json
from metamae.training.card import write_card
from metamae.training.record import ModelRecord

WEIGHTS = "model.safetensors"
MODEL = "config.json"


def write_model(folder: Path, record: ModelRecord, state: dict[str, Any]) -> None:
    """Write weights, :data:`MODEL` and the card, each whole or not at all.

    A card that a person wrote, or changed and signed by removing its last line, stays.

    Args:
        folder: Where to; made if missing.
        record: What the weights are of.
        state: State dict of the whole method.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_weights(folder / WEIGHTS, tensors)
    write_json(folder / MODEL, record.to_dict())
    count = sum(t.numel() for t in tensors.values())
    write_card(folder, record, count)


def read_model(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[ModelRecord, dict[str, Tensor]]:
    """The record and the weights of a folder, verified.

    Raises:
        CheckpointError: a missing, damaged or foreign file.
    """
    path = folder / MODEL
    try:
        values = read_json(path)
    except (OSError, ValueError) as fault:
        if is_systems(fault) and not isinstance(fault, FileNotFoundError):
            raise
        raise CheckpointError(
            f"expected a metamae model in {folder}, whose {MODEL} is missing or damaged "
            f"({reason_of(fault)}); save the model again"
        ) from fault
    return ModelRecord.from_dict(values), load_weights(folder / WEIGHTS, device)


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors with safetensors, atomically, with a digest that the format itself lacks."""
    # Tensors that share memory are refused by safetensors; each gets its own here.
    own = {name: value.clone() if value._is_view() else value for name, value in tensors.items()}
    content = safetensors.torch.save(own, {"format": "pt", "sha256": digest_of(own)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, or was written by others.
    """
    try:
        with path.open("rb"):  # the system's own error where it refuses
            pass
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if stored != digest_of(tensors):
            raise ValueError("its digest is missing or another")
    except FileNotFoundError as fault:
        raise CheckpointError(
            f"expected weights at {path}, found none; check the path, or save the model again"
        ) from fault
    # What a changed byte makes of a header has no common name.
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as fault:
        raise CheckpointError(
            f"expected weights that metamae wrote at {path}, got others or a damaged file "
            f"({reason_of(fault)}); save the model again"
        ) from fault
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values.

    Example:
        >>> import torch
        >>> from metamae.training.model_folder import digest_of
        >>> digest_of({"a": torch.zeros(2)}) == digest_of({"a": torch.zeros(2, 1)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        head = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(head).encode())
        content: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
