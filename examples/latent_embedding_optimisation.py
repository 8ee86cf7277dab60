"""Latent embedding optimisation: few-shot classification with the inner loop in latent space.

    python examples/latent_embedding_optimisation.py --shots 5 --out runs/leo

"Meta-Learning with Latent Embedding Optimization" (Rusu et al., ICLR 2019): a relation network
encodes the few images of a class, each paired with those of all classes, into a short code; a
decoder turns the code into the class's softmax weights; the inner loop moves the *code*, not the
weights, down the support loss. A task's latent is one code per class, the step size is learned.

What differs from the paper: 3-way tasks of 8x8 digits, meta-trained on digits 0-5 (each rotation
and reflection a class of its own), meta-tested on 6-9 by other writers; features by a perceptron,
trained along; the relation network corrects a class's mean code; no sampling, penalties or
fine-tuning of weights. Two settings. Digits as they are: pixels already tell classes apart, little
is left to meta-learn, and the nearest class mean, which learns nothing, beats LEO. And in dark or
light ink at random, which tasks have in common: there the means fail, and LEO holds its accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from metalearn import LatentAdapter, LearnedStepSize

WAYS, QUERIES, BATCH, PIXELS, CODE, HIDDEN, STEPS, TASKS = 3, 10, 16, 64, 32, 128, 5, 500


def load_classes() -> tuple[list[Tensor], list[Tensor]]:
    """Images ``(n, 64)``, from -1 to 1, of 48 classes to meta-train on and of 4 unseen ones."""
    from metamae.data import load_dataset

    digits = load_dataset("digits")
    train, test = (p.batch(slice(None))["image"][:, 0] * 2 - 1 for p in (digits.train, digits.test))
    label, unseen = map(torch.as_tensor, (digits.train.labels, digits.test.labels))
    turned = [train[label == n].rot90(turns, (1, 2)) for n in range(6) for turns in range(4)]
    seen = [x.flatten(1) for image in turned for x in (image, image.flip(2))]
    return seen, [test[unseen == n].flatten(1) for n in range(6, 10)]


def draw_tasks(classes: list[Tensor], tasks: int, shots: int, ink: str) -> list[Tensor]:
    """Support ``(B, WAYS, shots, 64)`` and query ``(B, WAYS, QUERIES, 64)`` of random tasks."""
    chosen = [classes[n] for _ in range(tasks) for n in torch.randperm(len(classes))[:WAYS]]
    images = torch.stack([c[torch.randperm(len(c))[: shots + QUERIES]] for c in chosen])
    if ink == "any ink":
        images = images * (2 * torch.randint(2, (*images.shape[:2], 1)) - 1)
    return list(images.unflatten(0, (tasks, WAYS)).split((shots, QUERIES), dim=2))


def classify(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of every task, ``(B,)``; logits ``(B, guess, truth, image)``."""
    truth = torch.arange(WAYS).unsqueeze(1).expand(logits[:, 0].shape)
    loss = functional.cross_entropy(logits, truth, reduction="none")
    return loss.mean((1, 2)), (logits.argmax(1) == truth).float().mean((1, 2))


def nearest_centroid(support: Tensor, query: Tensor) -> Tensor:
    """The baseline that learns nothing: accuracy of the nearest mean image, ``(B,)``."""
    difference = query.unsqueeze(1) - support.mean(2)[:, :, None, None]
    return classify(-difference.square().sum(-1))[1]


class LEO(nn.Module):
    """Features, encoder of classes, decoder to softmax weights, and an inner loop over codes."""

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, PIXELS)
        self.features = nn.Sequential(first, nn.SiLU(), last)
        self.encoder = nn.Linear(PIXELS, CODE, bias=False)
        first, last = nn.Linear(2 * CODE, HIDDEN), nn.Linear(HIDDEN, CODE)
        self.relation = nn.Sequential(first, nn.SiLU(), last)
        self.decoder = nn.Linear(CODE, PIXELS, bias=False)
        self.adapter = LatentAdapter(LearnedStepSize(1.0), steps=STEPS)

    def encode(self, support: Tensor) -> Tensor:
        """One code per class, ``(B, WAYS, CODE)``."""
        codes = self.encoder(support)  # (B, WAYS, shots, CODE)
        one, other = torch.broadcast_tensors(codes[:, :, None, :, None], codes[:, None, :, None])
        return codes.mean(2) + self.relation(torch.cat((one, other), -1)).mean((2, 3, 4))

    def forward(self, support: Tensor, query: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
        """Query loss and accuracy of every task, ``(B,)``."""
        support, query = (functional.normalize(self.features(x), dim=-1) for x in (support, query))

        def result(code: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            return classify(4 * torch.einsum("bwc,bnkc->bwnk", self.decoder(code), images))

        code = self.encode(support)
        refined = self.adapter(code, lambda code: result(code, support)[0], steps=steps)
        return result(refined.latent, query)


def train(network: nn.Module, classes: list[Tensor], steps: int, shots: int, ink: str) -> None:
    """An ordinary loop: `backward()` differentiates the inner loop by itself."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        losses, _ = network(*draw_tasks(classes, BATCH, shots, ink))
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        schedule.step()


def main() -> None:
    """Train in both settings; report and draw the accuracy on unseen classes."""
    parser = argparse.ArgumentParser(description="LEO on 8x8 digits of unseen classes.")
    parser.add_argument("--out", type=Path, default=Path("runs/leo"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=400, help="training steps in each setting")
    parser.add_argument("--shots", type=int, default=5, help="labelled images of each class")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps 1 or more, got {options.steps}")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # products this small only lose time to further threads
    (seen, unseen), figure = load_classes(), Figure(figsize=(9, 3.5), layout="constrained")
    most = min(map(len, [*seen, *unseen])) - QUERIES
    if not 1 <= options.shots <= most:
        parser.error(f"expected --shots from 1 to {most}, got {options.shots}")
    print(f"digits 6-9, {WAYS}-way {options.shots}-shot: accuracy (deviation over {TASKS} tasks),")
    print("before and after the inner loop; untrained, after it; nearest centroid of the pixels")
    for axes, ink in zip(figure.subplots(1, 2, sharey=True), ("dark ink", "any ink"), strict=True):
        network, tasks = LEO(), draw_tasks(unseen, TASKS, options.shots, ink)
        with torch.no_grad():  # the inner gradient is still taken
            untrained = network(*tasks)[1]
        train(network, seen, options.steps, options.shots, ink)
        with torch.no_grad():
            curve = [network(*tasks, steps)[1] for steps in range(11)]
        centroid = nearest_centroid(*tasks)
        rows = dict(before=curve[0], after=curve[STEPS], untrained=untrained, centroid=centroid)
        numbers = [f"{name} {each.mean():.3f} ({each.std():.3f})" for name, each in rows.items()]
        lead = rows["after"] - centroid  # on the same tasks, so surer than either
        winner = "LEO" if lead.mean() > 0 else "the baseline"
        margin = f"{lead.mean():+.3f} +- {2 * lead.std() / TASKS**0.5:.3f}"
        print(f"{ink}: {', '.join(numbers)}; LEO - centroid {margin}: {winner} wins")
        axes.plot([accuracy.mean() for accuracy in curve], marker="o", label="LEO")
        axes.axhline(untrained.mean(), color="C1", linestyle=":", label="LEO, untrained")
        axes.axhline(centroid.mean(), color="C2", linestyle="--", label="nearest centroid")
        axes.set(title=ink, xlabel="inner steps", ylabel="accuracy", ylim=(0, 1))
    axes.legend(loc="lower right")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "accuracy.png", dpi=100)
    print(f"wrote {options.out / 'accuracy.png'}")


if __name__ == "__main__":
    main()
