"""Draws docs/overview.png: what MetaMAE does with one recording, from a run that was trained.

    metamae pretrain sensors --set training.steps=1000 --out runs/overview
    PYTHONPATH=$PWD python benchmarks/draw_overview.py runs/overview

Test rows are only shown, after training. Errors are mean squares over the masked tokens of
256 of them, in units of the standardised channels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metamae import load_dataset
from metamae.evaluation import compute_features
from metamae.randomness import generator
from metamae.report.reconstructions import reconstruct
from metamae.training.run_folder import CHECKPOINT, load_method

OUT = Path(__file__).resolve().parent.parent / "docs" / "overview.png"
INK, GREY, BEFORE, AFTER = "#222222", "#e4e4e4", "#c46a1f", "#1f6fb4"
CHANNELS = (0, 1, 2)
EXAMPLES = 256


def series(
    axis: Axes, values: Any, hidden: Any, colour: str, *, where: Any = None, **style: Any
) -> None:
    """Channels above each other; masked steps shaded, and drawn only ``where`` asked."""
    steps = np.arange(values.shape[1])
    length = len(steps) // len(hidden)
    for token in np.flatnonzero(hidden):
        axis.axvspan(token * length - 0.5, (token + 1) * length - 0.5, color=GREY, lw=0)
    for row, channel in enumerate(CHANNELS):
        line = values[channel] if where is None else np.where(where, values[channel], np.nan)
        axis.plot(steps, line - 4 * row, color=colour, lw=1.6, **style)
    axis.set(yticks=[], xlabel="time step", xlim=(-0.5, len(steps) - 0.5))


def arrows(axis: Axes, latent: Any, refined: Any) -> None:
    """Every latent token before and after the step, in their plane of most variance."""
    both = np.concatenate([latent, refined])
    centre = both.mean(0)
    plane = np.linalg.svd(both - centre, full_matrices=False)[2][:2]
    a, b = (latent - centre) @ plane.T, (refined - centre) @ plane.T
    longest = np.linalg.norm(b - a, axis=1).max()
    times = max(1, round(0.35 * np.ptp(a, axis=0).max() / longest))
    axis.scatter(*a.T, s=30, color=BEFORE, zorder=3)
    style = {"angles": "xy", "scale_units": "xy", "scale": 1 / times, "color": AFTER}
    axis.quiver(*a.T, *(b - a).T, width=0.012, zorder=2, **style)
    axis.plot(*(a + times * (b - a)).T, alpha=0)  # so that arrows fit
    axis.margins(0.2)
    for text, colour, x in (("z", BEFORE, 0.06), ("z'", AFTER, 0.16)):
        axis.text(x, 0.05, text, color=colour, fontsize=18, transform=axis.transAxes)
    axis.set(xticks=[], yticks=[], xlabel=f"latent tokens, shift drawn x {times}")


def draw(run: Path) -> None:
    data = load_dataset("sensors")
    spec, test = data.inputs[0], data.need("test")
    method = load_method(run / CHECKPOINT, data.inputs)
    rows = torch.linspace(0, len(test) - 1, EXAMPLES).long()
    batch = test.batch(rows)
    split = method.draw(len(rows), generator(0, "overview"))
    targets = method.network.tokenizer.targets(batch)
    latent, refined = method.latents(batch, split)
    hidden = torch.zeros(len(rows), spec.tokens).scatter_(1, split.query_idx, 1.0).bool()
    with torch.no_grad():
        views = [reconstruct(method, z, targets, split)[spec.name] for z in (latent, refined)]
    truth = targets[spec.name]
    errors = [(view - truth).square().mean(2)[hidden].mean().item() for view in views]
    better = ((views[0] - truth).square() - (views[1] - truth).square()).mean(2)
    lively = truth.flatten(1).std(1) >= truth.flatten(1).std(1).median()
    gain = torch.where(lively, (better * hidden).sum(1), -torch.inf)
    chosen = int(gain.argsort(descending=True)[EXAMPLES // 10])  # a good one, not the best
    figure = Figure(figsize=(15, 3.7), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[0.9, 0.9, 0.9, 1.2, 1])
    values = batch[spec.name][chosen].numpy()
    mask = hidden[chosen].numpy()
    shown = np.repeat(~mask, values.shape[1] // len(mask))
    series(axes[0], values, np.zeros_like(mask), INK)
    series(axes[1], values, mask, INK, where=shown)
    arrows(axes[2], latent[chosen].detach().numpy(), refined[chosen].detach().numpy())
    series(axes[3], values, mask, INK, alpha=0.25)
    for view, colour in zip(views, (BEFORE, AFTER), strict=True):
        drawn = spec.unpatchify(view[chosen : chosen + 1])[0].numpy()
        series(axes[3], drawn, np.zeros_like(mask), colour, where=~shown)
    features = torch.as_tensor(compute_features(method, data)[1]).double()
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    flat = (features @ torch.linalg.svd(features, full_matrices=False)[2][:2].T).numpy()
    labels = np.asarray(test.labels)
    axes[4].scatter(*flat.T, c=labels, cmap="tab10", s=5, lw=0)
    axes[4].set(xticks=[], yticks=[], xlabel="test rows, by exercise")
    masked = round(100 * float(hidden.float().mean()))
    titles = (
        "1  data\n",
        f"2  mask {masked} %\n",
        "3  encode; one gradient\nstep from z to z'",
        f"4  predict what is masked:\nerror {errors[0]:.2f} from z, {errors[1]:.2f} from z'",
        "5  features, nothing\nmasked",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=14, loc="left")
        axis.xaxis.label.set_size(13)
        axis.tick_params(labelsize=12)
        axis.spines[["top", "right", "left"]].set_visible(False)
    for text, colour, x in (("from z", BEFORE, 0.03), ("from z'", AFTER, 0.27)):
        axes[3].text(x, 0.93, text, color=colour, fontsize=13, transform=axes[3].transAxes)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    draw(parser.parse_args().run)
