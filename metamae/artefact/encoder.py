"""The object behind :func:`metamae.load`: data in, embeddings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamae.arguments import as_path, is_whole
from metamae.artefact.module import EncoderModule
from metamae.config.schema import Config
from metamae.data.dataset import Array, Partition
from metamae.data.description import Description
from metamae.errors import ConfigError, DataError, InputError, reason_of
from metamae.evaluation.features import extract_features
from metamae.inputs import Inputs, InputSpec, Tokens, check_transfer
from metamae.methods.mae import MAE
from metamae.methods.method import Method
from metamae.methods.reconstruction import masked_tokens, reconstruct
from metamae.randomness import generator
from metamae.training.model_folder import write_model
from metamae.training.record import ModelRecord


@dataclass(frozen=True)
class Reconstruction:
    """What a masked autoencoder makes of what it sees.

    Attributes:
        values: Input name to array of the shape and in the units of the data; visible tokens are
            copied, masked ones predicted.
        masked: Input name to boolean ``(N, L)``: which tokens were masked.
    """

    values: Mapping[str, Array]
    masked: Mapping[str, Array]


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
        shapes = ", ".join(f"{spec.name} {_shape(spec)}" for spec in self.inputs)
        return (
            f"Encoder({self.config.method} on {self.description.name!r}, {self.record.step} "
            f"steps: {shapes} -> (N, {self.width}))"
        )

    def embed(self, data: Any, *, batch_size: int = 256) -> Array:
        """Embeddings, float32 ``(N, D)``, in the order of the data; nothing is masked.

        Args:
            data: An array (N, ...) where there is one input; a mapping of arrays by the name of
                their input; a partition of a data set, which brings its own scaling. Arrays are
                raw: they are scaled as the training data were.
            batch_size: Examples at once, which changes no more than the last bits.

        Raises:
            InputError, DataError: data that do not fit: another shape or kind, values that are not
                finite, symbols outside the vocabulary; in one line.
        """
        partition = self.partition(data)
        return self._compute(partition, tokens=False, batch_size=batch_size)

    def embed_tokens(self, data: Any, *, batch_size: int = 256) -> Array:
        """Embeddings of every token, float32 ``(N, L, D)``; several inputs one after the other."""
        partition = self.partition(data)
        return self._compute(partition, tokens=True, batch_size=batch_size)

    def _compute(self, partition: Partition, *, tokens: bool, batch_size: int) -> Array:
        _check_batch_size(batch_size)
        features: Array = extract_features(
            self.method, partition, tokens=tokens, device=self.device, batch_size=batch_size
        ).numpy()
        return features

    def partition(self, data: Any) -> Partition:
        """Data as the encoder reads them: see :meth:`embed`.

        Raises:
            InputError, DataError: data of another form.
        """
        if isinstance(data, Partition):
            check_transfer(self.inputs, data.inputs, names=(self.description.name, "these data"))
            partition = data
        else:
            partition = self.description.partition(self._arrays(data))
        if len(partition) == 0:
            raise DataError("expected one example or more to embed, got none")
        return partition

    def _arrays(self, data: Any) -> dict[str, Array]:
        names = [spec.name for spec in self.inputs]
        if isinstance(data, Mapping):
            if sorted(map(str, data)) != sorted(names):
                raise InputError(f"expected a mapping with inputs {names}, got {list(data)}")
            return {name: _as_array(name, data[name]) for name in names}
        if len(names) > 1:
            raise InputError(
                f"expected a mapping of arrays by the names of the inputs {names}, got "
                f"{type(data).__name__}"
            )
        return {names[0]: _as_array(names[0], data)}

    @torch.no_grad()
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
        partition = self.partition(data)
        split = method.draw(len(partition), generator(seed, "reconstruction"))
        values: dict[str, list[Tensor]] = {spec.name: [] for spec in self.inputs}
        for start in range(0, len(partition), batch_size):
            rows = slice(start, start + batch_size)
            batch = {name: x.to(self.device) for name, x in partition.batch(rows).items()}
            part = split[rows].to(self.device)
            method.check(batch, len(part.support_idx))
            targets = method.network.tokenizer.targets(batch)
            _, latent = method.latents(batch, part)
            for name, tokens in reconstruct(method, latent, targets, part).items():
                values[name].append(tokens)
        masked = {name: mask.numpy() for name, mask in masked_tokens(method, split).items()}
        joined = {name: torch.cat(parts) for name, parts in values.items()}
        return Reconstruction(
            {spec.name: _raw(spec, joined[spec.name], partition) for spec in self.inputs}, masked
        )

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


def _shape(spec: InputSpec) -> str:
    names = ("channels", "length", "height", "width", "columns")
    sizes = [str(getattr(spec, name)) for name in names if hasattr(spec, name)]
    return f"(N, {', '.join(sizes)})"


def _as_array(name: str, data: Any) -> Array:
    """An array of examples from what people have at hand: arrays, tensors, nested lists."""
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy()
    if isinstance(data, np.ndarray | Sequence) and not isinstance(data, str | bytes):
        try:
            array: Array = np.asarray(data)
        except ValueError as fault:
            raise DataError(
                f"expected examples of one shape in input {name!r}, got several "
                f"({reason_of(fault)}); cut or pad them to one length"
            ) from fault
        if array.ndim == 0:
            raise DataError(f"expected an array of examples as input {name!r}, got one number")
        if array.dtype.kind == "O":
            raise DataError(
                f"expected numbers in input {name!r}, all examples of one shape, got objects such "
                f"as {type(array.flat[0]).__name__ if array.size else 'none'}"
            )
        return array
    raise DataError(f"expected an array as input {name!r}, got {type(data).__name__}")


def _check_batch_size(batch_size: int) -> None:
    if not is_whole(batch_size) or batch_size < 1:
        raise ConfigError(f"expected a batch size of 1 or more, got {batch_size!r}")


def _raw(spec: InputSpec, tokens: Tensor, partition: Partition) -> Array:
    """Tokens put together again, in the units of the data."""
    if isinstance(spec, Tokens):
        symbols: Array = tokens.numpy()
        return symbols
    unpatchify = getattr(spec, "unpatchify", None)
    values: Array = (tokens if unpatchify is None else unpatchify(tokens)).numpy()
    scaling = partition.scaling.get(spec.name)
    if scaling is None or unpatchify is None:
        return values
    return values * np.asarray(scaling.scale, np.float32) + np.asarray(scaling.mean, np.float32)
