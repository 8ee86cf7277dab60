"""The object behind :func:`metamae.load`: data in, embeddings out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from metamae.arguments import as_path, is_whole
from metamae.artefact.folders import open_folder
from metamae.artefact.module import EncoderModule
from metamae.artefact.reading import example_sizes, read_examples
from metamae.artefact.reconstruction import Reconstruction, reconstruct_examples
from metamae.config.schema import Config
from metamae.data.dataset import Array, Partition
from metamae.data.description import Description
from metamae.data.formats.libraries import need_module
from metamae.data.own import Examples
from metamae.errors import ConfigError
from metamae.evaluation.features import extract_features
from metamae.evaluation.inner_gradients import gradient_features
from metamae.inputs import Inputs, Tokens, check_batch
from metamae.methods.mae import MAE
from metamae.methods.method import Method
from metamae.randomness import generator
from metamae.training.devices import choose_device
from metamae.training.model_folder import write_model
from metamae.training.record import ModelRecord


class Encoder:
    """A trained encoder with all it needs to know of its data; :func:`metamae.load` makes it.

    Args:
        method: The trained method.
        record: Configuration, description of the data, steps.
        device: Where the method is.

    Attributes:
        module: A plain :class:`torch.nn.Module` from raw tensors to features.

    Example:
        >>> import numpy as np
        >>> import metamae
        >>> from metamae.training import pretrain
        >>> config = metamae.make_config("basic_motions", overrides=["training.steps=1"])
        >>> _ = pretrain(config, metamae.load_dataset("basic_motions"), "run")
        >>> encoder = metamae.load("run")
        >>> encoder.embed(np.zeros((3, 6, 100))).shape
        (3, 128)
        >>> encoder.save("folder")
        >>> metamae.load("folder")
        Encoder(metamae on 'basic_motions', 1 steps: signal (N, 6, 100) -> (N, 128))
    """

    def __init__(
        self, method: Method[Any], record: ModelRecord, device: torch.device | str = "cpu"
    ) -> None:
        """See the class."""
        self.method, self.record, self.device = method.eval(), record, torch.device(device)
        self.module = EncoderModule(method, record.description).to(self.device)

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return self.record.config

    @property
    def description(self) -> Description:
        """What it was trained on: inputs, scaling, task, recipe."""
        return self.record.description

    @property
    def inputs(self) -> Inputs:
        """Specifications of its inputs."""
        return self.description.inputs

    @property
    def width(self) -> int:
        """Numbers in an embedding, ``D``."""
        return self.config.encoder.width

    def __repr__(self) -> str:
        sizes = {spec.name: ", ".join(map(str, example_sizes(spec))) for spec in self.inputs}
        shapes = ", ".join(f"{name} (N, {shown})" for name, shown in sizes.items())
        return (
            f"Encoder({self.config.method} on {self.description.name!r}, {self.record.step} "
            f"steps: {shapes} -> (N, {self.width}))"
        )

    def embed(self, data: Any, *, batch_size: int = 256) -> Array:
        """Embeddings, float32 ``(N, D)``, in the order of the data; nothing is masked.

        Args:
            data: An array (N, ...) where there is one input; a mapping of arrays by the names of
                the inputs; a data frame or a path, where it was trained on such; a partition of a
                data set, which brings its own scaling. Values are raw: they are scaled as the
                training data were.
            batch_size: Examples at once, which changes no more than the last bits.

        Raises:
            InputError, DataError: data that do not fit: another shape or kind, values that are not
                finite, symbols outside the vocabulary; in one line.
        """
        partition = self.read(data).partition
        return self._compute(partition, tokens=False, batch_size=batch_size)

    def embed_tokens(self, data: Any, *, batch_size: int = 256) -> Array:
        """Embeddings of every token, float32 ``(N, L, D)``; several inputs one after the other."""
        partition = self.read(data).partition
        return self._compute(partition, tokens=True, batch_size=batch_size)

    def embed_gradients(self, data: Any, *, batch_size: int = 256) -> Array:
        """Embeddings beside projected inner gradients, float32 ``(N, 2 D)``.

        See :func:`metamae.evaluation.inner_gradients.gradient_features`.

        Raises:
            ConfigError: a method without a decoder.
            InputError, DataError: data that do not fit, or of other sizes than those of training.
        """
        method = self.need_decoder()
        _check_batch_size(batch_size)
        partition = self.read(data).partition
        self.check_sizes(partition)
        joined: Array = gradient_features(
            method, partition, device=self.device, batch_size=batch_size
        ).numpy()
        return joined

    def _compute(self, partition: Partition, *, tokens: bool, batch_size: int) -> Array:
        _check_batch_size(batch_size)
        features: Array = extract_features(
            self.method, partition, tokens=tokens, device=self.device, batch_size=batch_size
        ).numpy()
        return features

    def read(
        self, data: Any, *, label: str = "", ids: str = "", skip_bad: bool = False
    ) -> Examples:
        """Data as :meth:`embed` takes them, made ready, with the names of their rows.

        Args:
            data: See :meth:`embed`.
            label: Column, key or file with labels, for a path or a data frame.
            ids: Names of the rows, in the same way.
            skip_bad: Whether to leave out files that cannot be read.

        Raises:
            InputError, DataError: data that do not fit.
        """
        return read_examples(data, self.description, label=label, ids=ids, skip_bad=skip_bad)

    def reconstruct(self, data: Any, *, seed: int = 0, batch_size: int = 256) -> Reconstruction:
        """Mask at the training ratio, and predict what was masked; MetaMAE from refined latents.

        Args:
            data: As :meth:`embed` takes them, of the sizes of the training data.
            seed: Seed of the masks, which do not depend on the batch size.
            batch_size: Examples at once.

        Raises:
            ConfigError: a method without a decoder.
            InputError, DataError: data that do not fit.
        """
        method = self.need_decoder()
        _check_batch_size(batch_size)
        partition = self.read(data).partition
        self.check_sizes(partition)
        split = method.draw(len(partition), generator(seed, "reconstruction"))
        return reconstruct_examples(method, partition, split, self.device, batch_size)

    def arrays(self, data: Any) -> dict[str, Array]:
        """What :attr:`module` and exported programs take: by input, float32 or int64, unscaled.

        For arrays these are the arrays; of a table or of files, what the recipe makes of them.

        Args:
            data: See :meth:`embed`.

        Raises:
            InputError, DataError: data that do not fit.
        """
        partition = self.read(data).partition
        partition.batch(slice(None))  # checks every value
        return {
            spec.name: np.asarray(partition.arrays[spec.name][:]).astype(
                np.int64 if isinstance(spec, Tokens) else np.float32
            )
            for spec in self.inputs
        }

    def check_sizes(self, partition: Partition) -> None:
        """Refuse data of other sizes than those of training: masks are drawn for these.

        Raises:
            InputError: naming both.
        """
        check_batch(self.inputs, partition.batch([0]), exact=True)

    def need_decoder(self) -> MAE:
        """The method, which must be able to reconstruct.

        Raises:
            ConfigError: it has no decoder.
        """
        if not isinstance(self.method, MAE):
            raise ConfigError(
                f"expected a run of metamae or mae to reconstruct with, got one of "
                f"{self.config.method}, which has no decoder"
            )
        return self.method

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder: weights, ``config.json`` and a card, no checkpoint.

        :func:`metamae.load` and :meth:`from_pretrained` open it, and so does a hub.
        """
        write_model(as_path(folder, "a folder"), self.record, self.method.state_dict())

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Hugging Face's name for :meth:`save`; options are those of its mixin.

        Args:
            save_directory: The folder.
            **options: ``push_to_hub=True`` and what goes with it.

        Raises:
            MissingLibraryError: options without the extra ``hub``.
        """
        if not options:
            self.save(save_directory)
            return None
        url: str | None = _hub().HubFolder(model=self).save_pretrained(save_directory, **options)
        return url

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload weights, ``config.json`` and the card; state the licence in the card first.

        Args:
            repo_id: Name of the repository, such as ``"me/my-encoder"``.
            **options: Of ``huggingface_hub.ModelHubMixin.push_to_hub``: ``private``, ``token``.

        Raises:
            MissingLibraryError: without the extra ``hub``.
        """
        url: str = _hub().HubFolder(model=self).push_to_hub(repo_id, **options)
        return url

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: str | torch.device = "cpu", **options: Any
    ) -> Encoder:
        """Load from a folder, or from Hugging Face's hub by name.

        Args:
            name_or_path: A folder, or a repository such as ``"me/my-encoder"``.
            device: As in :func:`metamae.load`.
            **options: Of ``huggingface_hub.ModelHubMixin.from_pretrained``: ``revision``,
                ``cache_dir``, ``token``, ``local_files_only``.

        Raises:
            CheckpointError: nothing there that can be loaded.
            MissingLibraryError: a name without the extra ``hub``.
        """
        where = choose_device(str(device))
        folder = as_path(name_or_path, "a folder or a repository")
        if not folder.is_dir():
            folder = _hub().fetch(str(name_or_path), **options)
        return cls(*open_folder(folder), where)


def _hub() -> Any:
    need_module("huggingface_hub", "hub")
    from metamae.artefact import hub

    return hub


def _check_batch_size(batch_size: int) -> None:
    if not is_whole(batch_size) or batch_size < 1:
        raise ConfigError(f"expected a batch size of 1 or more, got {batch_size!r}")
