"""Features joined with the gradients that an inner step descends, projected (after FUNGI)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metamae.data.dataset import Dataset, Partition
from metamae.errors import ConfigError, TrainingError
from metamae.evaluation.features import extract_features
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import Method
from metamae.model.masking import all_visible
from metamae.randomness import generator


def inner_gradients(method: MAE, batch: Batch) -> Tensor:
    r"""Gradient of every example's support loss in its latent, ``(B, 1 + L, D)``.

    .. math:: g = \nabla_z L_S(z), \quad z = e(S)

    with all tokens visible: of MetaMAE the direction of its first inner step (Eq. 2), of any masked
    autoencoder how its latent would have to move to be decoded better.

    Args:
        method: The method, on the device of the batch.
        batch: Examples of the sizes of the training data.

    Raises:
        ConfigError: a method whose decoder mixes the encoder's blocks.
    """
    network = method.network
    if network.mixes_blocks:
        raise ConfigError(
            "expected decoder.mix_blocks=false for gradients in a latent, got true, where a latent "
            "is the states of all blocks; use other features"
        )
    size = len(next(iter(batch.values())))
    method.check(batch, size)
    split = all_visible(network.inputs, size).to(next(network.parameters()).device)
    targets = network.targets(batch)
    with torch.no_grad():
        latent = network.encode(network.visible_tokens(batch, split))
    with torch.enable_grad():
        latent.requires_grad_()
        losses = network.support_loss(latent, targets, split, second_order=False)
        (gradient,) = torch.autograd.grad(losses.sum(), latent)  # examples do not mix
    return gradient


def gradient_features(
    method: Method[Any],
    data: Partition,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    r"""Features and projected inner gradients of all examples, float32 ``(N, 2 D)`` on the CPU.

    .. math:: \left[\frac{f}{\mathrm{rms}(f)},\ \frac{P g}{\mathrm{rms}(P g)}\right]

    of an example's features :math:`f` and its flat gradient :math:`g`
    (:func:`inner_gradients`), with a matrix :math:`P` of random signs, ``D`` rows. The root mean
    squares are over the numbers of one example: both halves have one length.

    Args:
        method: A masked autoencoder, on its device.
        data: The examples.
        device: Where the method is.
        batch_size: Examples at once.
        seed: Of the signs, which no other thing depends on.

    Raises:
        ConfigError: a method without a decoder, or with one that mixes the encoder's blocks.
        TrainingError: features or gradients that are not finite.

    Example:
        >>> from metamae import build_method, load_dataset, make_config
        >>> from metamae.evaluation.inner_gradients import gradient_features
        >>> data = load_dataset("basic_motions")
        >>> method = build_method(make_config("basic_motions"), data.inputs)
        >>> gradient_features(method, data.need("test")).shape
        torch.Size([40, 256])
    """
    if not isinstance(method, MAE):
        raise ConfigError(
            f"expected a masked autoencoder for gradients, got {type(method).__name__}, which has "
            "no decoder; use other features"
        )
    features = extract_features(method, data, device=device)
    width, mode, parts = features.shape[1], method.training, []
    tokens = sum(spec.tokens for spec in method.network.inputs)
    signs = projection((1 + tokens) * width, width, seed).to(device)
    method.eval()
    try:
        for start in range(0, len(data), batch_size):
            rows = data.batch(slice(start, start + batch_size))
            gradient = inner_gradients(method, {name: x.to(device) for name, x in rows.items()})
            parts.append((gradient.flatten(1).float() @ signs).cpu())
    finally:
        method.train(mode)
    gradients = torch.cat(parts)
    if not bool(torch.isfinite(gradients).all()):
        raise TrainingError(
            "expected finite inner gradients, got NaN or infinity; the weights have diverged: "
            "lower training.learning_rate"
        )
    return torch.cat([_of_unit_size(features), _of_unit_size(gradients)], dim=1)


def projection(numbers: int, width: int, seed: int) -> Tensor:
    """Random signs ``(numbers, width)``, a function of the seed and of both sizes."""
    draw = generator(seed, "gradient projection")
    signs = torch.randint(2, (numbers, width), generator=draw, dtype=torch.int8)
    return signs.float().mul_(2).sub_(1)


def _of_unit_size(rows: Tensor) -> Tensor:
    """Rows divided by their root mean square; a row of zeros stays one."""
    size = rows.square().mean(dim=1, keepdim=True).sqrt()
    return rows / torch.where(size > 0, size, 1)


def joined_gradients(
    method: Method[Any], dataset: Dataset, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features beside projected inner gradients, of the training and the test rows (after FUNGI).

    Raises:
        ConfigError: a method without a decoder, or a task of tokens.
    """
    if dataset.need_task().kind == "token_classification":
        raise ConfigError(
            f"expected a task of examples for gradients, got one of tokens ({dataset.name!r}); use "
            "other features"
        )
    train, test = (
        gradient_features(method, dataset.need(part), device=device) for part in ("train", "test")
    )
    return train, test
