"""Pictures: reconstructions drawn as befits the modality, and training curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metamae.data.dataset import Partition
from metamae.errors import ConfigError
from metamae.files import replacing
from metamae.inputs import Image, InputSpec, Signal, Tabular, Tokens
from metamae.methods.mae import MAE
from metamae.methods.reconstruction import masked_tokens, reconstruct
from metamae.randomness import generator
from metamae.report.listings import has_words, height_of, is_listed, list_values, list_words
from metamae.report.style import SERIES, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
MASKED = "#e8e8e8"
PICTURES = (".png", ".svg", ".pdf")
"""Endings of the pictures that can be drawn."""
LEGEND = "z: latent of what is visible.  z': after adaptation (MAE has none).  Gray: masked."
LISTED = "  Ring: true value.  Green: right.  Red: wrong."
"""Below the picture, for those who see such a one for the first time."""


def check_picture(path: Path) -> None:
    """Raise ``ConfigError`` unless a picture can be written under this name."""
    if path.suffix not in PICTURES:
        raise ConfigError(f"expected a picture ending in {', '.join(PICTURES)}, got {path.name!r}")


@styled({"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True})
def draw_reconstructions(
    method: MAE, data: Partition, path: Path, *, examples: int = 4, seed: int = 0
) -> None:
    """Draw original, masked input and the predictions from both latents for a few examples.

    The first examples of ``data`` are taken as they come, masked at the training ratio. Visible
    tokens are copied, so that a prediction is judged where it was made. Real values are in the
    units in which the method sees them.

    Args:
        method: MAE (both predictions are equal) or MetaMAE.
        data: Where the examples come from.
        path: Picture to write, ending in one of :data:`PICTURES`.
        examples: Number of examples, spread evenly over ``data``.
        seed: Seed of the masks.
    """
    rows = torch.linspace(0, len(data) - 1, min(examples, len(data))).long()
    batch = data.batch(rows)
    device = next(method.parameters()).device
    split = method.draw(len(rows), generator(seed, "figure")).to(device)
    on_device = {name: x.to(device) for name, x in batch.items()}
    targets = method.network.tokenizer.targets(on_device)
    latent, refined = method.latents(on_device, split)
    with torch.no_grad():
        views = [reconstruct(method, z, targets, split) for z in (latent, refined)]
    masked = masked_tokens(method, split)
    specs = method.network.inputs
    from matplotlib.figure import Figure  # takes a second: commands start without it

    heights = [height_of(spec) for spec in specs] * len(rows)
    figure = Figure(figsize=(13, sum(heights) + 0.6))
    axes = figure.subplots(len(heights), 4, squeeze=False, height_ratios=heights)
    figure.supxlabel(LEGEND + LISTED * any(map(is_listed, specs)))
    titles = ("original", "masked input", "prediction from z", "prediction from z'")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for line in range(len(rows) * len(specs)):
        example, number = divmod(line, len(specs))
        spec = specs[number]
        truth = targets[spec.name].cpu()[example]
        hidden = masked[spec.name][example]
        drawings = (truth, None, *(view[spec.name][example] for view in views))
        for axis, tokens in zip(axes[line], drawings, strict=True):
            shade = torch.zeros_like(hidden) if axis is axes[line][0] else hidden
            _draw(axis, spec, truth, tokens, shade.numpy())
            if axis is not axes[line][0]:
                axis.set_yticks([])
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _draw(axis: Axes, spec: InputSpec, truth: Tensor, tokens: Tensor | None, hidden: Array) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if isinstance(spec, Tokens):
        symbols = None if tokens is None else tokens.numpy()
        draw = list_words if is_listed(spec) else _draw_letters
        draw(axis, spec, truth.numpy(), symbols, hidden)
    elif isinstance(spec, Tabular) and is_listed(spec):
        values = None if tokens is None else _series(spec, tokens).numpy()
        list_values(axis, spec.column_names, _series(spec, truth).numpy(), values, hidden)
    elif isinstance(spec, Image):
        _draw_image(axis, spec, truth, tokens, hidden)
    else:
        _draw_lines(axis, spec, truth, tokens, hidden)


def _draw_lines(
    axis: Axes, spec: InputSpec, truth: Tensor, tokens: Tensor | None, hidden: Array
) -> None:
    """Channels over time, columns side by side; of an unknown kind, the values of its tokens."""
    shown, limits = (_series(spec, x).numpy() for x in (truth if tokens is None else tokens, truth))
    width = shown.shape[-1] // len(hidden)
    series = np.atleast_2d(shown)
    mask = np.repeat(hidden, width)
    for start in np.flatnonzero(hidden):
        axis.axvspan(start * width - 0.5, (start + 1) * width - 0.5, color=MASKED, lw=0)
    marker = "o" if isinstance(spec, Tabular) else None
    for number, values in enumerate(series):
        drawn = np.where(mask, np.nan, values) if tokens is None else values
        axis.plot(drawn, color=SERIES[number % len(SERIES)], lw=1, marker=marker, ms=4)
    there = limits[np.isfinite(limits)]  # cells may be missing
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 0.0)
    margin = 0.1 * (high - low) + 1e-3
    axis.set_ylim(low - margin, high + margin)
    axis.set_xlim(-0.5, series.shape[-1] - 0.5)


def _series(spec: InputSpec, tokens: Tensor) -> Tensor:
    if isinstance(spec, Signal | Tabular):
        return spec.unpatchify(tokens.unsqueeze(0))[0]
    return tokens.flatten()


def _draw_image(
    axis: Axes, spec: Image, truth: Tensor, tokens: Tensor | None, hidden: Array
) -> None:
    original = spec.unpatchify(truth.unsqueeze(0))[0]
    shown = original if tokens is None else spec.unpatchify(tokens.unsqueeze(0))[0]
    over = (0, 1, 2) if len(original) == 3 else (1, 2)  # bands alone would make false colours
    low, high = original.amin(over, keepdim=True), original.amax(over, keepdim=True)
    picture = ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).numpy()
    # False colour for more than three channels: the longest wavelengths first.
    picture = picture[[0, 0, 0]] if len(picture) < 3 else picture[[-1, len(picture) // 2, 0]]
    if tokens is None:
        mask = np.kron(hidden.reshape(spec.grid), np.ones(spec.patch)).astype(bool)
        picture = np.where(mask, 0.5, picture)
    axis.imshow(picture.transpose(1, 2, 0), interpolation="nearest")


def _draw_letters(
    axis: Axes, spec: Tokens, truth: Array, tokens: Array | None, hidden: Array
) -> None:
    """Visible letters black, right predictions green, wrong ones red, masked ones a dot."""
    names = spec.alphabet or tuple(map(str, range(spec.vocabulary)))
    words = has_words(spec)
    columns = 2 if words else 26
    count = len(truth) if words else min(len(truth), 4 * columns)
    lines = -(-count // columns)
    for place in range(count):
        symbol = names[(truth if tokens is None else tokens)[place]]
        colour = "black"
        if hidden[place]:
            right = tokens is not None and tokens[place] == truth[place]
            symbol = "·" if tokens is None else symbol
            colour = "#999999" if tokens is None else ("#1b9e77" if right else "#d62728")
        line, column = divmod(place, columns)
        axis.text(
            (column + 0.5) / columns,
            1 - (line + 0.5) / lines,
            "-" if symbol.startswith("<") else symbol,
            color=colour,
            ha="center",
            va="center",
            family="monospace",
            fontsize="small",
        )
