"""Pictures: reconstructions drawn as befits the modality, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metamae.data.dataset import Partition
from metamae.inputs import Image, InputSpec, Tabular, Tokens
from metamae.masking import Split
from metamae.objective import MAE
from metamae.randomness import generator
from metamae.report import LABELS

Array = NDArray[Any]
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")
MASKED = "#e8e8e8"


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
        path: PNG file to write.
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
    masked = _masked_tokens(method, split)
    specs = method.network.inputs
    figure = Figure(figsize=(13, 1.9 * len(rows) * len(specs) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows) * len(specs), 4, squeeze=False)
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
    figure.savefig(path, dpi=110)


def reconstruct(
    method: MAE, latent: Tensor, targets: Mapping[str, Tensor], split: Split
) -> dict[str, Tensor]:
    """All tokens of every input, predicted where masked and copied where visible, on the CPU."""
    network = method.network
    counts = network.masking.query_counts
    predictions = network.predict(latent, split)
    result, offset = {}, 0
    for spec, index in zip(network.inputs, split.query_idx.split(counts, 1), strict=True):
        _, query = predictions[spec.name]
        tokens = targets[spec.name].clone()
        if isinstance(spec, Tokens):
            tokens.scatter_(1, index - offset, query.argmax(-1))
        else:
            places = (index - offset).unsqueeze(-1).expand_as(query)
            tokens.scatter_(1, places, query.to(tokens.dtype))
        result[spec.name] = tokens.cpu()
        offset += spec.tokens
    return result


def _masked_tokens(method: MAE, split: Split) -> dict[str, Tensor]:
    """Per input a boolean ``(B, L_i)``: which tokens are masked."""
    specs = method.network.inputs
    masked = torch.zeros(len(split.query_idx), sum(s.tokens for s in specs), dtype=torch.bool)
    masked.scatter_(1, split.query_idx.cpu(), True)
    return dict(
        zip([s.name for s in specs], masked.split([s.tokens for s in specs], 1), strict=True)
    )


def _draw(axis: Axes, spec: InputSpec, truth: Tensor, tokens: Tensor | None, hidden: Array) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if isinstance(spec, Tokens):
        _draw_letters(axis, spec, truth.numpy(), None if tokens is None else tokens.numpy(), hidden)
    elif isinstance(spec, Image):
        _draw_image(axis, spec, truth, tokens, hidden)
    else:
        _draw_lines(axis, spec, truth, tokens, hidden)


def _draw_lines(
    axis: Axes, spec: InputSpec, truth: Tensor, tokens: Tensor | None, hidden: Array
) -> None:
    assert not isinstance(spec, Tokens | Image)
    shown = spec.unpatchify((truth if tokens is None else tokens).unsqueeze(0))[0].numpy()
    limits = spec.unpatchify(truth.unsqueeze(0))[0].numpy()
    series, width = (shown[None], 1) if isinstance(spec, Tabular) else (shown, spec.token_length)
    mask = np.repeat(hidden, width)
    for start in np.flatnonzero(hidden):
        axis.axvspan(start * width - 0.5, (start + 1) * width - 0.5, color=MASKED, lw=0)
    marker = "o" if isinstance(spec, Tabular) else None
    for number, values in enumerate(series):
        drawn = np.where(mask, np.nan, values) if tokens is None else values
        axis.plot(drawn, color=COLOURS[number % len(COLOURS)], lw=1, marker=marker, ms=4)
    margin = 0.1 * float(np.ptp(limits)) + 1e-3
    axis.set_ylim(float(limits.min()) - margin, float(limits.max()) + margin)
    axis.set_xlim(-0.5, series.shape[-1] - 0.5)


def _draw_image(
    axis: Axes, spec: Image, truth: Tensor, tokens: Tensor | None, hidden: Array
) -> None:
    original = spec.unpatchify(truth.unsqueeze(0))[0]
    shown = original if tokens is None else spec.unpatchify(tokens.unsqueeze(0))[0]
    low, high = original.amin((1, 2), keepdim=True), original.amax((1, 2), keepdim=True)
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
    words = max(len(name) for name in names if not name.startswith("<")) > 1
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
            fontsize=8,
        )


def draw_curves(
    histories: Mapping[str, Sequence[Mapping[str, list[list[float]]]]], path: Path
) -> None:
    """Draw training losses per method, and MetaMAE's support loss around the inner step.

    Losses on masked tokens share a panel. Methods with another loss get a panel of their own,
    where each loss is divided by its first value: they have no scale in common.

    Args:
        histories: Method name to one history per seed (name -> list of ``[step, value]``).
        path: PNG file to write.
    """
    others = not all("query" in run for runs in histories.values() for run in runs)
    panels = 3 if others else 2
    figure = Figure(figsize=(5.5 * panels, 3.8), layout="constrained")
    left, *middle, right = figure.subplots(1, panels)
    for number, (method, runs) in enumerate(histories.items()):
        if all("query" in run for run in runs):
            _draw_series(left, [run["query"] for run in runs], COLOURS[number], LABELS[method])
        else:
            relative = [_relative(run["loss"]) for run in runs]
            _draw_series(middle[0], relative, COLOURS[number], LABELS[method])
        if all("support_before" in run for run in runs):
            before, after = (
                [run[f"support_{side}"] for run in runs] for side in ("before", "after")
            )
            _draw_series(right, before, COLOURS[0], "before the inner step")
            _draw_series(right, after, COLOURS[1], "after it")
            gains = [100 * (1 - a[-1][1] / b[-1][1]) for b, a in zip(before, after, strict=True)]
            right.set_title(f"support loss (last reduction {np.mean(gains):.2g} %)")
    left.set_title("loss on masked tokens")
    for axis in middle:
        axis.set_title("other losses, relative to their first value")
    for axis in (left, *middle, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
        else:
            axis.text(0.5, 0.5, "nothing to show", ha="center", transform=axis.transAxes)
    figure.savefig(path, dpi=110)


def _relative(points: list[list[float]]) -> list[list[float]]:
    first = points[0][1] or 1.0
    return [[step, value / first] for step, value in points]


def _draw_series(axis: Axes, runs: Sequence[list[list[float]]], colour: str, label: str) -> None:
    """One thin line a seed, and their running mean over the steps that all have logged."""
    for run in runs:
        axis.plot(*np.array(run).T, color=colour, lw=0.5, alpha=0.35)
    levels = [{point[0]: point[1] for point in run} for run in runs]
    steps = sorted(set(levels[0]).intersection(*levels[1:]))
    if not steps:
        return
    mean = np.array([[level[step] for step in steps] for level in levels]).mean(0)
    width = max(1, len(steps) // 15)
    padded = np.pad(mean, (width - 1, 0), mode="edge")
    smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
    axis.plot(steps, smooth, color=colour, lw=1.8, label=label)
