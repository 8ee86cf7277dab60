"""Draws docs/overview.png: what MetaMAE does with one recording, from a run that was trained.

    metamae pretrain sensors --set training.steps=1000 --out runs/overview
    PYTHONPATH=$PWD python benchmarks/draw_overview.py runs/overview

Test rows are only shown, after training. Errors are mean squares over the masked tokens of
256 of them, in units of the standardised channels; the bars are those of the recording shown, each
token's mean over all channels.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from metamae import load_dataset
from metamae.evaluation import compute_features
from metamae.randomness import generator
from metamae.report.reconstructions import reconstruct
from metamae.report.style import SERIES, styled
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
        axis.plot(steps, line - 4 * row, color=colour, lw=1.8, **style)
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
    for text, colour, x in (("z", BEFORE, 0.06), ("z'", AFTER, 0.18)):
        axis.text(x, 0.05, text, color=colour, fontsize="x-large", transform=axis.transAxes)
    axis.set(xticks=[], yticks=[], xlabel=f"latent tokens,\nshift drawn x {times}")


def bars(axis: Axes, errors: Any, hidden: Any, length: int) -> None:
    """Two bars a masked token, before and after the step; from zero, both on one scale."""
    tokens = np.flatnonzero(hidden)
    for side, (error, colour) in enumerate(zip(errors, (BEFORE, AFTER), strict=True)):
        places = (tokens + 0.28 + 0.44 * side) * length - 0.5
        axis.bar(places, error[tokens], 0.44 * length, color=colour, lw=0)
    axis.set(xlabel="time step", ylabel="error,\nthis one", xlim=(-0.5, len(hidden) * length - 0.5))
    axis.set_ylim(bottom=0)


def exercises(axis: Axes, features: Any, labels: Any, names: Any) -> None:
    """Standardised features in their plane of most variance, a colour for each class."""
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    flat = (features @ torch.linalg.svd(features, full_matrices=False)[2][:2].T).numpy()
    for number, name in enumerate(names):
        chosen = flat[labels == number]
        axis.scatter(*chosen.T, color=SERIES[number], s=8, lw=0, label=name)
    axis.set(xticks=[], yticks=[], xlabel="test rows, by exercise")
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=4,
        markerscale=3,
        handletextpad=0,
        columnspacing=0.5,
        borderpad=0,
    )


@styled({"axes.grid": False, "axes.spines.left": False})
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
    errors = [(view - truth).square().mean(2) for view in views]
    before, after = (error[hidden].mean().item() for error in errors)
    lively = truth.flatten(1).std(1) >= truth.flatten(1).std(1).median()
    gain = torch.where(lively, ((errors[0] - errors[1]) * hidden).sum(1), -torch.inf)
    chosen = int(gain.argsort(descending=True)[EXAMPLES // 10])  # a good one, not the best
    figure = Figure(figsize=(14.5, 4.4))
    names = [
        ["data", "mask", "step", "predict", "features"],
        ["data", "mask", "step", "error", "features"],
    ]
    axes = figure.subplot_mosaic(
        names, width_ratios=[0.85, 0.85, 0.9, 1.5, 1.1], height_ratios=[2.4, 1]
    )
    values = batch[spec.name][chosen].numpy()
    mask = hidden[chosen].numpy()
    length = values.shape[1] // len(mask)
    shown = np.repeat(~mask, length)
    series(axes["data"], values, np.zeros_like(mask), INK)
    series(axes["mask"], values, mask, INK, where=shown)
    arrows(axes["step"], latent[chosen].detach().numpy(), refined[chosen].detach().numpy())
    series(axes["predict"], values, mask, INK, alpha=0.25)
    for view, colour in zip(views, (BEFORE, AFTER), strict=True):
        predicted = spec.unpatchify(view[chosen : chosen + 1])[0].numpy()
        series(axes["predict"], predicted, np.zeros_like(mask), colour, where=~shown)
    axes["predict"].set(xlabel="", xticks=[])
    bars(axes["error"], [error[chosen].numpy() for error in errors], mask, length)
    features = torch.as_tensor(compute_features(method, data)[1]).double()
    exercises(axes["features"], features, np.asarray(test.labels), data.task.classes)
    masked = round(100 * float(hidden.float().mean()))
    titles = {
        "data": "1  data\n",
        "mask": f"2  mask {masked} %\n",
        "step": "3  encode; a gradient\nstep from z to z'",
        "predict": f"4  predict what is masked:\nerror {before:.2f} from z, {after:.2f} from z'",
        "features": "5  features, nothing\nmasked",
    }
    for name, title in titles.items():
        axes[name].set_title(title, loc="left")
    for text, colour, x in (("from z", BEFORE, 0.02), ("from z'", AFTER, 0.23)):
        place = axes["predict"].transAxes
        axes["predict"].text(x, 0.9, text, color=colour, transform=place)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    # The README shows it: a palette makes it a third as large.
    Image.open(drawn).convert("RGB").quantize(128).save(OUT, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    draw(parser.parse_args().run)
