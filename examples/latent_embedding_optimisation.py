"""Latent embedding optimisation: few-shot classification with the inner loop in latent space.

    python examples/latent_embedding_optimisation.py --shots 5 --out runs/leo

"Meta-Learning with Latent Embedding Optimization" (LEO; Rusu et al., ICLR 2019): a relation
network encodes the few images of a class, each paired with those of all classes, into a short
code; a decoder turns the code into the class's softmax weights; the inner loop moves the *code*,
not the weights, down the support loss; a second, short inner loop fine-tunes the weights. Each
loop is a `LatentAdapter` with a learned step size; the query loss is differentiated through both.

What differs from the paper: 8x8 digits, 3-way tasks, meta-trained on digits 0-5 and meta-tested on
6-9 by other writers. Six classes are few to learn learning from: their rotations and reflections
count as classes of their own. Features are centred pixels of one length, not a pre-trained
network's. Codes and weights are not sampled, and no penalty is added to the query loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from metalearn import LatentAdapter, LearnedStepSize

WAYS, QUERIES, BATCH, PIXELS, CODE, HIDDEN, STEPS, TASKS = 3, 10, 16, 64, 32, 64, 5, 500


def load_classes() -> tuple[list[Tensor], list[Tensor]]:
    """Images ``(n, 64)`` by class: 48 classes to meta-train on, 4 unseen ones to meta-test."""
    from metamae.data import load_dataset

    digits = load_dataset("digits")
    train, test = (part.batch(slice(None))["image"][:, 0] for part in (digits.train, digits.test))
    label, unseen = map(torch.as_tensor, (digits.train.labels, digits.test.labels))
    turned = [train[label == n].rot90(turns, (1, 2)) for n in range(6) for turns in range(4)]
    seen = [x.flatten(1) for image in turned for x in (image, image.flip(2))]
    return seen, [test[unseen == n].flatten(1) for n in range(6, 10)]


def draw_tasks(classes: list[Tensor], tasks: int, shots: int) -> list[Tensor]:
    """Support ``(B, WAYS, shots, 64)`` and query ``(B, WAYS, QUERIES, 64)`` of random tasks."""
    chosen = [classes[n] for _ in range(tasks) for n in torch.randperm(len(classes))[:WAYS]]
    images = torch.stack([c[torch.randperm(len(c))[: shots + QUERIES]] for c in chosen])
    return list(images.unflatten(0, (tasks, WAYS)).split((shots, QUERIES), dim=2))


def classify(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of every task, ``(B,)``, from logits ``(B, class, truth, n)``."""
    truth = torch.arange(WAYS).unsqueeze(1).expand(logits[:, 0].shape)
    loss = functional.cross_entropy(logits, truth, reduction="none")
    return loss.mean((1, 2)), (logits.argmax(1) == truth).float().mean((1, 2))


def nearest_centroid(support: Tensor, query: Tensor) -> Tensor:
    """The baseline that learns nothing: accuracy of the nearest mean image, ``(B,)``."""
    difference = query.unsqueeze(1) - support.mean(2)[:, :, None, None]
    return classify(-difference.square().sum(-1))[1]


class LatentEmbeddingOptimisation(nn.Module):
    """Encoder, decoder, and two inner loops: one over codes, one over softmax weights."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean
        self.encoder = nn.Linear(PIXELS, CODE, bias=False)
        first, last = nn.Linear(2 * CODE, HIDDEN), nn.Linear(HIDDEN, CODE)
        self.relation = nn.Sequential(first, nn.SiLU(), last)
        self.decoder = nn.Linear(CODE, PIXELS, bias=False)
        self.adapt = LatentAdapter(LearnedStepSize(1.0), steps=STEPS)
        self.fine_tune = LatentAdapter(LearnedStepSize(0.1), steps=STEPS)

    def encode(self, support: Tensor) -> Tensor:
        """One code per class, ``(B, WAYS, CODE)``: the mean over all pairs with its images."""
        codes = self.encoder(support)  # (B, WAYS, shots, CODE)
        one, other = torch.broadcast_tensors(codes[:, :, None, :, None], codes[:, None, :, None])
        return self.relation(torch.cat((one, other), -1)).mean((2, 3, 4))

    def forward(
        self, support: Tensor, query: Tensor, steps: int = STEPS, fine_steps: int = STEPS
    ) -> tuple[Tensor, Tensor]:
        """Query loss and accuracy of every task, ``(B,)``."""
        support, query = (4 * functional.normalize(x - self.mean, dim=-1) for x in (support, query))

        def result(weights: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            return classify(torch.einsum("bwc,bnkc->bwnk", weights, images))

        code = self.encode(support)
        code = self.adapt(code, lambda z: result(self.decoder(z), support)[0], steps=steps).latent
        weights = self.decoder(code)
        tuned = self.fine_tune(weights, lambda w: result(w, support)[0], steps=fine_steps).latent
        return result(tuned, query)


def train(network: LatentEmbeddingOptimisation, classes: list[Tensor], shots: int, n: int) -> None:
    """An ordinary loop: `backward()` differentiates both inner loops by itself."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(n):
        losses, accuracy = network(*draw_tasks(classes, BATCH, shots))
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {losses.mean():.3f} accuracy {accuracy.mean():.3f}")


def draw(curve: list[Tensor], baseline: Tensor, file: Path) -> None:
    """Accuracy on unseen classes by number of latent steps, with twice its standard error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    error = [2 * accuracy.std() / TASKS**0.5 for accuracy in curve]
    axes.errorbar(range(len(curve)), [a.mean() for a in curve], error, marker="o", label="LEO")
    axes.axhline(baseline.mean(), color="gray", linestyle="--", label="nearest centroid of pixels")
    axes.set(xlabel=f"steps of the code ({STEPS} in training)", ylabel="accuracy, unseen classes")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="LEO on 8x8 digits of unseen classes.")
    parser.add_argument("--out", type=Path, default=Path("runs/leo"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--shots", type=int, default=5, help="labelled images of each class")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # products this small only lose time to further threads
    seen, unseen = load_classes()
    network = LatentEmbeddingOptimisation(torch.cat(seen).mean(dim=0))
    tasks = draw_tasks(unseen, TASKS, options.shots)
    with torch.no_grad():
      print([network(*tasks,a,b)[1].mean() for a,b in ((0,0),(5,0),(5,5),(10,0),(0,5),(0,10),(0,50))])
    train(network, seen, options.shots, options.steps)
    with torch.no_grad():
        curve = [network(*tasks, steps, fine_steps=0)[1] for steps in range(2 * STEPS + 1)]
        tuned, baseline = network(*tasks)[1], nearest_centroid(*tasks)
        print([network(*tasks,a,b)[1].mean() for a,b in ((0,0),(5,0),(5,5),(10,0),(0,5),(0,10),(0,50))])
    print(f"accuracy on unseen digits 6-9, {WAYS}-way {options.shots}-shot, {TASKS} tasks:")
    for name, accuracy in {
        "before the inner loop": curve[0],
        f"after {STEPS} steps of the codes": curve[STEPS],
        f"and {STEPS} of the weights": tuned,
        "nearest centroid of pixels": baseline,
    }.items():
        print(f"  {name}: {accuracy.mean():.3f} (deviation over tasks {accuracy.std():.3f})")
    gain = tuned - baseline  # the same tasks, so the difference is far more certain than each
    error = 2 * gain.std() / TASKS**0.5
    verdict = "LEO wins" if gain.mean() > error else "no clear difference"
    verdict = "the baseline wins" if gain.mean() < -error else verdict
    print(f"LEO minus baseline {gain.mean():+.3f} +- {error:.3f}: {verdict}")
    draw(curve, baseline, options.out / "accuracy.png")
    print(f"wrote {options.out / 'accuracy.png'}")


if __name__ == "__main__":
    main()
