"""Gradient origin networks: an autoencoder without an encoder, from the parts of `metalearn`.

    python examples/gradient_origin_network.py --out runs/gon

"Gradient Origin Networks" (Bond-Taylor & Willcocks, ICLR 2021) take as latent of an image x the
negative gradient of its reconstruction loss at the origin, z = -dL(x, F(z0))/dz0 at z0 = 0, and
train the decoder F through that gradient. `MetaObjective` says the same with an encoder that
returns zeros, one inner step of size 1, and a query loss equal to the support loss.

What differs from the paper: 8x8 digits and a small perceptron; ELU, whose second derivative the
outer gradient uses; no batch normalisation, which would tie the latents of a batch together; and
the squared error is summed over pixels, not averaged. With step size 1 the gradient *is* the
latent: averaged over 64 pixels it starts 64 times smaller, next to the origin, and F must first
learn to amplify it (the authors' code averages, but batch normalisation rescales there). The sum
trains faster and further; compare with --reduce mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn import LatentAdapter, MetaLoss, MetaObjective

PIXELS, LATENT, HIDDEN, BATCH = 64, 16, 256, 128


def load_digits() -> tuple[Tensor, Tensor]:
    """Images for training and for testing, ``(N, 64)`` with values from 0 to 1."""
    from metamae.data import load_dataset

    digits = load_dataset("digits")
    train, test = (part.batch(slice(None))["image"] for part in (digits.pretrain, digits.test))
    return train.flatten(1), test.flatten(1)


class GradientOriginNetwork(nn.Module):
    """A decoder, and latents that are gradients of its own error."""

    def __init__(self, reduce: str) -> None:
        super().__init__()
        first, second = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        last = nn.Linear(HIDDEN, PIXELS)
        self.decoder = nn.Sequential(first, nn.ELU(), second, nn.ELU(), last, nn.Sigmoid())
        self.reduce = reduce
        # "Encode" every image to the origin, then take one step of size 1 down its own loss:
        # z' = 0 - 1 * dL/dz. There is nothing to align, so there is no contrast.
        self.objective = MetaObjective(
            encoder=lambda images: images.new_zeros(len(images), LATENT),
            adapter=LatentAdapter(step_size=1.0, steps=1),
        )

    def forward(self, images: Tensor) -> MetaLoss:
        """Latent from the gradient, and the loss of decoding it: support and query are one."""

        def loss(latent: Tensor) -> Tensor:  # (B, LATENT) -> (B,)
            error = (self.decoder(latent) - images).square()
            return error.sum(dim=1) if self.reduce == "sum" else error.mean(dim=1)

        return self.objective(images, support_loss=loss, query_loss=loss)


@torch.no_grad()  # the inner gradient is still taken, but nothing is kept to differentiate it
def reconstruct(network: GradientOriginNetwork, images: Tensor) -> tuple[Tensor, float]:
    """Reconstructions, and their squared error per image: summed, whatever was trained."""
    decoded = network.decoder(network(images).adaptation.latent)
    return decoded, (decoded - images).square().sum(dim=1).mean().item()


def train(network: GradientOriginNetwork, images: Tensor, steps: int) -> None:
    """An ordinary loop: `backward()` differentiates the inner gradient by itself."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        loss = network(images[torch.randint(len(images), (BATCH,))]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.3f}")


def draw(rows: dict[str, Tensor], file: Path) -> None:
    """One row of images for each entry."""
    figure = Figure(figsize=(12, 2.3), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(2, 12), rows.items(), strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main() -> None:
    """Train on digits, report the loss on unseen ones, draw some of them."""
    parser = argparse.ArgumentParser(description="Train a gradient origin network on 8x8 digits.")
    parser.add_argument("--out", type=Path, default=Path("runs/gon"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--reduce", choices=("sum", "mean"), default="sum", help="over pixels")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps 1 or more, got {options.steps}")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # products this small only lose time to further threads
    images, unseen = load_digits()
    network, picture = GradientOriginNetwork(options.reduce), options.out / "reconstructions.png"
    before = reconstruct(network, unseen)[1]
    train(network, images, options.steps)
    decoded, after = reconstruct(network, unseen)
    mean = (unseen - images.mean(dim=0)).square().sum(dim=1).mean()
    print(f"test loss before {before:.4f} after {after:.4f} (the mean image: {mean:.4f})")
    draw({"original": unseen[:12], "decoded": decoded[:12]}, picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
