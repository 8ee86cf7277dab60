"""Hugging Face's manner: folders as its hub keeps them, by its own mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelHubMixin, snapshot_download

from metamae.errors import CheckpointError, reason_of
from metamae.training.card import CARD
from metamae.training.model_folder import MODEL, WEIGHTS


class Saved(Protocol):
    """What can be written into a folder."""

    def save(self, folder: str | Path) -> None:
        """Write into a folder."""
        ...


class HubFolder(ModelHubMixin):
    """A folder of the hub, or one that is going there.

    Args:
        folder: Where it lies on this machine.
        model: What is to be written into it.
    """

    def __init__(self, folder: Path | None = None, model: Saved | None = None) -> None:
        """See the class."""
        self.folder, self.model = folder, model

    def _save_pretrained(self, save_directory: Path) -> None:
        assert self.model is not None
        self.model.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubFolder:
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        kept = {name: options[name] for name in names if name in options}
        files = [MODEL, WEIGHTS, CARD]
        return cls(Path(snapshot_download(model_id, allow_patterns=files, **kept)))


def fetch(name: str, **options: Any) -> Path:
    """Download a model of the hub; the folder it lies in.

    Raises:
        CheckpointError: no such folder and no such repository, or no way to reach it.
    """
    try:
        folder = HubFolder.from_pretrained(name, **options).folder
    except (OSError, ValueError) as fault:  # what the hub's errors derive from
        raise CheckpointError(
            f"expected a folder, or a repository of the hub that can be reached, got {name!r} "
            f"({reason_of(fault)})"
        ) from fault
    assert folder is not None
    return folder
