"""What a masked autoencoder predicts, put back into the shape and the units of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metamae.data.dataset import Array, Partition
from metamae.inputs import InputSpec, Tokens
from metamae.methods.mae import MAE
from metamae.methods.reconstruction import masked_tokens, reconstruct
from metamae.model.masking import Split


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


@torch.no_grad()
def reconstruct_examples(
    method: MAE, partition: Partition, split: Split, device: torch.device, batch_size: int
) -> Reconstruction:
    """Predict the masked tokens of all examples, from refined latents where there are some.

    Args:
        method: The method, on its device.
        partition: The examples.
        split: Which of their tokens are masked, on the CPU.
        device: Where the method is.
        batch_size: Examples at once.
    """
    specs = method.network.inputs
    values: dict[str, list[Tensor]] = {spec.name: [] for spec in specs}
    for start in range(0, len(partition), batch_size):
        rows = slice(start, start + batch_size)
        batch = {name: x.to(device) for name, x in partition.batch(rows).items()}
        part = split[rows].to(device)
        targets = method.network.tokenizer.targets(batch)
        _, latent = method.latents(batch, part)
        for name, tokens in reconstruct(method, latent, targets, part).items():
            values[name].append(tokens)
    joined = {name: torch.cat(parts) for name, parts in values.items()}
    return Reconstruction(
        {spec.name: _raw(spec, joined[spec.name], partition) for spec in specs},
        {name: mask.numpy() for name, mask in masked_tokens(method, split).items()},
    )


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
