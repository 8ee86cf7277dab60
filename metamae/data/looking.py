"""A look at the data before training: what is not finite stops, what is odd is told."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metamae.data.dataset import Partition, describe_channel, describe_place
from metamae.errors import DataError
from metamae.inputs import Image, InputSpec, Signal, Tabular, Tokens
from metamae.randomness import generator

ROWS = 1024
"""Rows looked at, drawn by the seed; all where there are no more."""
VALUES = 2**24
"""Most numbers of one input looked at: of large examples fewer rows."""
LOUD = 10.0
"""Largest honest root mean square of a scaled channel; standardised ones have 1, pixels less."""
FAINT = 1e-3
"""Smallest honest deviation of a scaled channel that is not constant."""
NAMED = 3
"""Channels that a line names; the others are counted."""


def look_at(data: Partition, *, seed: int = 0) -> list[str]:
    """Look at a sample of rows, scaled as a method would see them.

    Losses are squared errors of scaled values: with a root mean square of 100 they start at 10,000,
    and no learning rate of the presets fits. A constant channel teaches nothing.

    Args:
        data: The examples to pretrain on.
        seed: Seed of the sample.

    Returns:
        What is odd, a line each, with channel, row and what to do; nothing of honest data.

    Raises:
        DataError: a value that is not finite, raw or scaled; the message has row and place.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.data.looking import look_at
        >>> look_at(load_dataset("sensors").need("pretrain"))
        []
    """
    if len(data) == 0:
        return []
    widest = max(spec.tokens * spec.values for spec in data.inputs)
    rows = _sample(len(data), max(2, min(ROWS, VALUES // widest)), seed)
    batch = data.batch(rows)
    found = []
    for spec in data.inputs:
        x = batch[spec.name]
        found += _symbols(spec, x) if isinstance(spec, Tokens) else _numbers(spec, x, rows)
    if len(rows) > 1 and all(bool((x == x[:1]).all()) for x in batch.values()):
        found.append(
            f"all {len(rows)} rows looked at are equal: nothing tells examples apart; look at how "
            "they were read"
        )
    return found


def _sample(count: int, most: int, seed: int) -> Tensor:
    if count <= most:
        return torch.arange(count)
    drawn = torch.randint(count, (most,), generator=generator(seed, "look"))
    rows: Tensor = drawn.unique()  # sorted, which disks prefer
    return rows


def _symbols(spec: Tokens, x: Tensor) -> list[str]:
    if spec.vocabulary > 1 and bool((x == x.flatten()[0]).all()):
        return [
            f"input {spec.name!r} holds one symbol only, {int(x.flatten()[0])}, in {len(x)} rows "
            "looked at; look at how it was read, or leave it out"
        ]
    return []


def _numbers(spec: InputSpec, x: Tensor, rows: Tensor) -> list[str]:
    """Lines on an input of real numbers ``(B, C, ...)``; of an unknown kind all is one channel."""
    if getattr(spec, "gaps", False):  # a missing cell says nothing of its column
        x = torch.where(x.isnan(), x.nanmean(0).nan_to_num(), x)
    _refuse_overflow(spec, x, rows)
    split = isinstance(spec, Signal | Image | Tabular)
    channels = x.double().reshape(len(x), x.shape[1] if split else 1, -1)
    low, high = channels.amin((0, 2)), channels.amax((0, 2))
    size = channels.square().mean((0, 2)).sqrt()
    spread = channels.var((0, 2), correction=0).sqrt()
    constant = (low == high) & (channels[:, 0].numel() > 1)
    odd = ~constant & ((size > LOUD) | (spread < FAINT))
    return _describe_constant(spec, constant, low, len(x)) + _describe_scale(
        spec, x, rows, odd, size, spread
    )


def _refuse_overflow(spec: InputSpec, x: Tensor, rows: Tensor) -> None:
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):
        row, *place = bad[0].tolist()
        raise DataError(
            f"expected finite values in input {spec.name!r} after scaling, got "
            f"{float(x[tuple(bad[0])])} in row {int(rows[row])} {describe_place(spec, place)}; "
            "look at the scaling"
        )


def _describe_constant(spec: InputSpec, which: Tensor, value: Tensor, rows: int) -> list[str]:
    numbers = which.nonzero().flatten().tolist()
    if not numbers:
        return []
    values = ", ".join(f"{value[n]:g}" for n in numbers[:NAMED])
    return [
        f"{_name(spec, numbers)} of input {spec.name!r} constant ({values} after scaling) in "
        f"{rows} rows looked at; leave out what is constant, or look at how it was read"
    ]


def _describe_scale(
    spec: InputSpec, x: Tensor, rows: Tensor, which: Tensor, size: Tensor, spread: Tensor
) -> list[str]:
    numbers = which.nonzero().flatten().tolist()
    if not numbers:
        return []
    worst = max(numbers, key=lambda n: abs(math.log10(max(float(size[n]), 1e-30))))
    row, *place = torch.unravel_index(x.abs().argmax(), x.shape)
    where = describe_place(spec, [int(n) for n in place])
    return [
        f"{_name(spec, numbers)} of input {spec.name!r} far from a scale of 1: root mean square "
        f"{size[worst]:.3g}, deviation {spread[worst]:.3g} ({describe_channel(spec, worst)}), "
        f"largest {x.abs().max():.3g} in row {int(rows[row])} {where}; expected a root mean square "
        f"up to {LOUD:g} and a deviation from {FAINT:g}: standardise the data, or divide pixels by "
        "their maximum"
    ]


def _name(spec: InputSpec, numbers: list[int]) -> str:
    if not isinstance(spec, Signal | Image | Tabular):
        return "values are"
    named = ", ".join(describe_channel(spec, n) for n in numbers[:NAMED])
    more = len(numbers) - NAMED
    others = f" and {more} more" if more > 0 else ""
    return f"{named}{others} {'is' if len(numbers) == 1 else 'are'}"
