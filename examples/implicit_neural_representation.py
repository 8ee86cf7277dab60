"""Implicit neural representations: an image is a latent that modulates one shared network.

    python examples/implicit_neural_representation.py --out runs/inr

A network maps a pixel's coordinates to its brightness and is shared by all images; an image is the
vector that shifts the network's activations, found by a few gradient steps from zero (CAVIA,
Zintgraf et al. 2019; "From data to functa", Dupont et al. 2022). The network and the step sizes are
trained through these steps, so that few of them suffice. As a function of coordinates, a fitted
image can be drawn at any resolution.

What differs from the papers: 8 x 8 digits, a small sine network, per-channel learned step sizes
(Meta-SGD). `Checkpointed()` is exact like `Unrolled()`, yet holds one step's graph at a time: the
same memory for 3 steps as for 30.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn import Checkpointed, LatentAdapter, LearnedStepSize
from metamae.data import load_dataset
from metamae.report.style import styled

WIDTH, LATENT, DEPTH, TRAIN_STEPS, BATCH = 64, 48, 3, 3, 64


def grid(size: int) -> Tensor:
    """Pixel centres of a square image, ``(size * size, 2)`` in [-1, 1]."""
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.cartesian_prod(axis, axis)


class ModulatedSiren(nn.Module):
    """Brightness at coordinates ``(P, 2)`` under latents ``(B, LATENT)``: ``(B, P)``."""

    def __init__(self, frequency: float = 5.0) -> None:
        super().__init__()
        sizes = [2] + [WIDTH] * DEPTH
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.shifts = nn.Linear(LATENT, WIDTH * DEPTH, bias=False)
        self.out = nn.Linear(WIDTH, 1)
        self.frequency = frequency
        for layer in self.layers[1:]:  # keeps activations spread over the sine (SIREN)
            nn.init.uniform_(layer.weight, -((6 / WIDTH) ** 0.5), (6 / WIDTH) ** 0.5)

    def forward(self, coordinates: Tensor, latent: Tensor) -> Tensor:
        shifts = self.shifts(latent).unsqueeze(1).chunk(DEPTH, dim=-1)
        x = coordinates * self.frequency
        for layer, shift in zip(self.layers, shifts, strict=True):
            x = torch.sin(layer(x) + shift)  # the shift is (B, 1, WIDTH): one for all pixels
        return self.out(x).squeeze(-1)


def fit(adapter: LatentAdapter, network: ModulatedSiren, images: Tensor, steps: int) -> Tensor:
    """Latents of flattened images ``(B, 64)``, by gradient steps from zero."""
    pixels = grid(8)
    return adapter(
        images.new_zeros(len(images), LATENT),
        lambda z: (network(pixels, z) - images).square().mean(dim=1),
        steps=steps,
    ).latent


def psnr(prediction: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over images."""
    error = (prediction - images).square().mean(dim=1).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/inr"), help="folder of the picture")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps 1 or more, got {options.steps}")
    torch.set_num_threads(1)  # the network is tiny
    torch.manual_seed(options.seed)
    digits = load_dataset("digits")
    train = digits.pretrain.batch(slice(None))["image"].flatten(1)
    test = digits.test.batch(slice(0, 256))["image"].flatten(1)  # other writers

    network = ModulatedSiren()
    adapter = LatentAdapter(
        LearnedStepSize(5.0, channels=LATENT), steps=TRAIN_STEPS, differentiation=Checkpointed()
    )
    optimiser = torch.optim.Adam([*network.parameters(), *adapter.parameters()], lr=2e-3)
    for _ in range(options.steps):
        images = train[torch.randint(len(train), (BATCH,))]
        prediction = network(grid(8), fit(adapter, network, images, TRAIN_STEPS))
        loss = (prediction - images).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    with torch.no_grad():
        mean_image = psnr(train.mean(0).expand_as(test), test)
        print(f"PSNR of {len(test)} test images (the mean image: {mean_image:.2f} dB)")
        for steps in (0, 1, TRAIN_STEPS, 10):
            latent = fit(adapter, network, test, steps)
            print(f"after {steps:2d} inner steps: {psnr(network(grid(8), latent), test):.2f} dB")
        latent = fit(adapter, network, test[:8], TRAIN_STEPS)
        draw(test[:8], network(grid(8), latent), network(grid(32), latent), options.out)


@styled({"axes.grid": False})
def draw(images: Tensor, fitted: Tensor, fine: Tensor, folder: Path) -> None:
    """Originals, fits, and the same functions at 32 x 32."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12, 4.8))
    axes = figure.subplots(3, len(images))
    for row, (name, values) in enumerate(
        {"original": images, "fitted": fitted, "at 32 x 32": fine}.items()
    ):
        size = int(values.shape[1] ** 0.5)
        for axis, value in zip(axes[row], values, strict=True):
            axis.imshow(value.reshape(size, size), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row][0].set_ylabel(name)
    figure.savefig(folder / "images.png")
    print(f"picture: {folder / 'images.png'}")


if __name__ == "__main__":
    main()
