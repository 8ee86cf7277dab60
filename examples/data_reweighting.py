"""Learning to reweight: a few clean labels find the wrong ones among many (Ren et al. 2018).

Two fifths of the training labels of the digit images are replaced by random ones. The inner level
fits a perceptron to all of them, weighted; the outer level moves one weight per example so that
fitting helps on a hundred clean examples. `metalearn.multilevel` without any masked autoencoder:

    python examples/data_reweighting.py

It prints test accuracies and how well the weights tell wrong labels from right ones, and draws
the weights. Under a minute on one CPU thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.multilevel.levels import Level
from metalearn.multilevel.problem import Multilevel
from metamae import load_dataset
from metamae.report.style import styled

NOISE, CLEAN, BATCH, WIDTH = 0.4, 100, 128, 64
Labelled = tuple[Tensor, Tensor]


def load() -> tuple[Labelled, Labelled, Labelled, Tensor]:
    """Noisy training rows, clean rows, test rows, and which training labels were replaced."""
    data = load_dataset("digits")
    parts = []
    for part in (data.train, data.test):
        assert part.labels is not None
        x = part.batch(slice(None))["image"].flatten(1)
        parts.append((x, torch.from_numpy(part.labels).long()))
    (x, y), test = parts
    order = torch.randperm(len(x))
    clean, rest = order[:CLEAN], order[CLEAN:]
    replaced = torch.rand(len(rest)) < NOISE
    noisy = torch.where(replaced, torch.randint(10, (len(rest),)), y[rest])
    return (x[rest], noisy), (x[clean], y[clean]), test, noisy != y[rest]


def perceptron() -> nn.Module:
    """The inner model."""
    return nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))


def accuracy(model: nn.Module, rows: Labelled) -> float:
    """Share of right predictions."""
    return (model(rows[0]).argmax(1) == rows[1]).float().mean().item()


def sampler(rows: int) -> Callable[[int], Tensor]:
    """Random rows of a step; drawn from torch's generator, which the problem seeds by the step."""
    return lambda step: torch.randint(rows, (min(BATCH, rows),))


def reweight(noisy: Labelled, clean: Labelled, steps: int) -> tuple[nn.Module, Tensor]:
    """Solve the two levels together; the trained model and the weights in [0, 1]."""
    model, logits = perceptron(), nn.ParameterList([nn.Parameter(torch.zeros(len(noisy[0])))])

    def weighted_fit(rows: Tensor) -> Tensor:
        losses = F.cross_entropy(model(noisy[0][rows]), noisy[1][rows], reduction="none")
        return (logits[0][rows].sigmoid() * losses).mean()

    def clean_fit(rows: Tensor) -> Tensor:
        return F.cross_entropy(model(clean[0][rows]), clean[1][rows])

    inner = Level(
        name="model",
        module=model,
        optimiser=torch.optim.Adam(model.parameters(), lr=3e-3),
        loss=weighted_fit,
        batches=sampler(len(noisy[0])),
        hypergradient="darts",
    )
    outer = Level(
        name="weights",
        module=logits,
        optimiser=torch.optim.Adam(logits.parameters(), lr=0.1),
        loss=clean_fit,
        batches=sampler(len(clean[0])),
    )
    Multilevel([inner, outer]).run(steps)
    return model, logits[0].detach().sigmoid()


def fit(rows: Labelled, steps: int) -> nn.Module:
    """The same model and steps without an outer level."""
    model = perceptron()
    optimiser, batch = torch.optim.Adam(model.parameters(), lr=3e-3), sampler(len(rows[0]))
    for step in range(steps):
        index = batch(step)
        optimiser.zero_grad()
        F.cross_entropy(model(rows[0][index]), rows[1][index]).backward()
        optimiser.step()
    return model


def separation(weights: Tensor, wrong: Tensor) -> float:
    """How often a right label weighs more than a wrong one (the area under the ROC curve)."""
    right, false = weights[~wrong].unsqueeze(1), weights[wrong].unsqueeze(0)
    return ((right > false).float() + 0.5 * (right == false).float()).mean().item()


@styled()
def draw(weights: Tensor, wrong: Tensor, file: Path) -> None:
    """Weights of right and of wrong labels."""
    figure = Figure(figsize=(6, 3.4))
    axes = figure.subplots()
    for label, chosen in (("right labels", ~wrong), ("wrong labels", wrong)):
        axes.hist(weights[chosen].numpy(), bins=30, range=(0, 1), alpha=0.6, label=label)
    axes.set_xlabel("learned weight")
    axes.set_ylabel("training examples")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    """Compare with and without weights."""
    parser = argparse.ArgumentParser(description="Learning to reweight noisy labels.")
    parser.add_argument("--out", type=Path, default=Path("runs/reweighting"), help="folder")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps 1 or more, got {options.steps}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    noisy, clean, test, wrong = load()
    model, weights = reweight(noisy, clean, options.steps)
    everything = (torch.cat([noisy[0], clean[0]]), torch.cat([noisy[1], clean[1]]))
    print(f"{len(wrong)} training labels, {100 * wrong.float().mean():.0f} % of them wrong")
    print(f"test accuracy, all labels alike: {accuracy(fit(everything, options.steps), test):.3f}")
    print(f"test accuracy, {CLEAN} clean ones: {accuracy(fit(clean, options.steps), test):.3f}")
    print(f"test accuracy, learned weights: {accuracy(model, test):.3f}")
    print(f"mean weight of right labels: {weights[~wrong].mean():.3f}")
    print(f"mean weight of wrong labels: {weights[wrong].mean():.3f}")
    print(f"a right label outweighs a wrong one with probability: {separation(weights, wrong):.3f}")
    draw(weights, wrong, options.out / "weights.png")
    print(f"wrote {options.out / 'weights.png'}")


if __name__ == "__main__":
    main()
