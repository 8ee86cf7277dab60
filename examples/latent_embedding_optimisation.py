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
network's. The decoder does not sample its weights and has no orthogonality penalty.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from metalearn import LatentAdapter, LearnedStepSize

WAYS, QUERIES, BATCH, PIXELS, CODE, HIDDEN = 3, 10, 16, 64, 32, 64
STEPS, FINE_STEPS, TEST_TASKS = 5, 5, 500


def load_classes() -> tuple[list[Tensor], list[Tensor]]:
    """Images ``(n, 64)`` by class: 48 classes to meta-train on, 4 unseen ones to meta-test."""
    from metamae.data import load_dataset

    digits = load_dataset("digits")
    train, test = (part.batch(slice(None))["image"][:, 0] for part in (digits.train, digits.test))
    label, unseen = map(torch.as_tensor, (digits.train.labels, digits.test.labels))
    turned = [train[label == n].rot90(turns, (1, 2)) for n in range(6) for turns in range(4)]
    seen = [x.flatten(1) for image in turned for x in (image, image.flip(2))]
    return seen, [test[unseen == n].flatten(1) for n in range(6, 10)]


def draw_tasks(classes: list[Tensor], tasks: int, shots: int) -> tuple[Tensor, Tensor]:
    """Support ``(B, WAYS, shots, 64)`` and query ``(B, WAYS, QUERIES, 64)`` of random tasks."""
    drawn = [
        torch.stack([c[torch.randperm(len(c))[: shots + QUERIES]] for c in chosen])
        for chosen in (
            [classes[n] for n in torch.randperm(len(classes))[:WAYS]] for _ in range(tasks)
        )
    ]
    images = torch.stack(drawn)
    return images[:, :, :shots], images[:, :, shots:]


def classify(weights: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of every task, ``(B,)``; weights ``(B, WAYS, 64)``."""
    logits = torch.einsum("bwc,bnkc->bwnk", weights, images)
    truth = torch.arange(WAYS).reshape(1, WAYS, 1).expand(logits[:, 0].shape)
    loss = functional.cross_entropy(logits, truth, reduction="none")
    return loss.mean((1, 2)), (logits.argmax(1) == truth).float().mean((1, 2))


def nearest_centroid(support: Tensor, query: Tensor) -> Tensor:
    """The baseline that learns nothing: accuracy of the nearest mean image, ``(B,)``."""
    distance = (query.unsqueeze(1) - support.mean(2)[:, :, None, None]).square().sum(-1)
    return (distance.argmin(1) == torch.arange(WAYS).reshape(WAYS, 1)).float().mean((1, 2))


class LatentEmbeddingOptimisation(nn.Module):
    """Encoder, decoder, and two inner loops: one over codes, one over softmax weights."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.encoder = nn.Linear(PIXELS, CODE, bias=False)
        self.relation = nn.Sequential(
            nn.Linear(2 * CODE, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * CODE)
        )
        self.decoder = nn.Linear(CODE, PIXELS, bias=False)
        self.adapt = LatentAdapter(LearnedStepSize(1.0), steps=STEPS)
        self.fine_tune = LatentAdapter(LearnedStepSize(0.1), steps=FINE_STEPS)

    def features(self, images: Tensor) -> Tensor:
        return 4.0 * functional.normalize(images - self.mean, dim=-1)

    def encode(self, support: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithmic deviation of every class's code, ``(B, WAYS, CODE)`` each."""
        codes = self.encoder(support)  # (B, N, K, CODE)
        one, other = torch.broadcast_tensors(codes[:, :, None, :, None], codes[:, None, :, None])
        return self.relation(torch.cat((one, other), -1)).mean((2, 3, 4)).chunk(2, -1)

    def forward(
        self, support: Tensor, query: Tensor, steps: int = STEPS, fine_steps: int = FINE_STEPS
    ) -> tuple[Tensor, Tensor]:
        """Loss to train on, a scalar, and query accuracy of every task, ``(B,)``."""
        support, query = self.features(support), self.features(query)
        mean, spread = self.encode(support)
        code = mean + spread.exp() * torch.randn_like(mean) if self.training else mean

        def code_loss(code: Tensor) -> Tensor:  # (B, WAYS, CODE) -> (B,)
            return classify(self.decoder(code), support)[0]

        refined = self.adapt(code, code_loss, steps=steps).latent
        weights = self.fine_tune(
            self.decoder(refined), lambda w: classify(w, support)[0], steps=fine_steps
        ).latent
        loss, accuracy = classify(weights, query)
        divergence = 0.5 * (mean.square() + (2 * spread).exp() - 1 - 2 * spread).sum(-1).mean()
        start_well = (code - refined.detach()).square().mean()  # the encoder learns where z' went
        return loss.mean() + 1e-3 * divergence + 1e-2 * start_well, accuracy


def train(network: LatentEmbeddingOptimisation, classes: list[Tensor], shots: int, n: int) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n)
    for step in range(n):
        loss, accuracy = network(*draw_tasks(classes, BATCH, shots))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f} accuracy {accuracy.mean():.3f}")


def draw(curve: list[Tensor], baseline: Tensor, file: Path) -> None:
    """Accuracy on unseen classes by number of latent steps, with twice its standard error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    mean = torch.stack([a.mean() for a in curve])
    error = torch.stack([2 * a.std() / len(a) ** 0.5 for a in curve])
    axes.errorbar(range(len(curve)), mean, error, marker="o", label="LEO, codes only")
    axes.axhline(baseline.mean(), color="gray", linestyle="--", label="nearest centroid of pixels")
    axes.axvline(STEPS, color="gray", linewidth=0.5)
    axes.set(xlabel=f"inner steps ({STEPS} in training)", ylabel="accuracy on unseen classes")
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
    train(network, seen, options.shots, options.steps)
    tasks = draw_tasks(unseen, TEST_TASKS, options.shots)
    with torch.no_grad():
        network.eval()
        curve = [network(*tasks, steps=steps, fine_steps=0)[1] for steps in range(2 * STEPS + 1)]
        tuned, baseline = network(*tasks)[1], nearest_centroid(*tasks)
    print(f"accuracy on unseen digits 6-9, {WAYS}-way {options.shots}-shot, {TEST_TASKS} tasks:")
    rows = {
        "before the inner loop": curve[0],
        f"after {STEPS} steps of the codes": curve[STEPS],
        f"and {FINE_STEPS} of the weights": tuned,
        "nearest centroid of pixels": baseline,
    }
    for name, accuracy in rows.items():
        print(f"  {name}: {accuracy.mean():.3f} (deviation over tasks {accuracy.std():.3f})")
    gain = tuned - baseline  # the same tasks, so the difference is far more certain than each
    error = 2 * gain.std() / TEST_TASKS**0.5
    verdict = "no clear difference" if gain.mean().abs() < error else "LEO wins"
    verdict = "the baseline wins" if gain.mean() < -error else verdict
    print(f"LEO minus baseline {gain.mean():+.3f} +- {error:.3f}: {verdict}")
    draw(curve, baseline, options.out / "accuracy.png")
    print(f"wrote {options.out / 'accuracy.png'}")


if __name__ == "__main__":
    main()
