"""Latent embedding optimisation: few-shot classification with the inner loop in latent space.

    python examples/latent_embedding_optimisation.py --shots 1 --out runs/leo

"Meta-Learning with Latent Embedding Optimization" (LEO; Rusu et al., ICLR 2019): a relation
network encodes the few images of a class, each paired with those of all classes, into a short
code; a decoder turns the code into the class's softmax weights; the inner loop moves the *code*,
not the weights, down the support loss, with a learned step size. The latent of a task is one code
per class, and `backward()` of the query loss goes through the inner loop to everything.

What differs from the paper: 3-way tasks of 8x8 digits, meta-trained on digits 0-5 (each rotation
and reflection a class of its own) and meta-tested on 6-9 by other writers; features by a small
perceptron, trained along; a code starts at the mean of its class's images, and the relation
network adds to it; no sampling, no penalties, no fine-tuning of the weights. Two settings: digits
as they are, where raw pixels already tell classes apart and there is little to meta-learn, and
digits in dark or light ink at random, where the tasks share a nuisance that can be learned.
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
    if ink == "either ink":
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


class LatentEmbeddingOptimisation(nn.Module):
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


def train(network: LatentEmbeddingOptimisation, classes: list[Tensor], n: int, *task: str) -> None:
    raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description="LEO on 8x8 digits of unseen classes.")
    parser.add_argument("--out", type=Path, default=Path("runs/leo"), help="folder of the picture")
    parser.add_argument("--steps", type=int, default=500, help="training steps in each setting")
    parser.add_argument("--shots", type=int, default=1, help="labelled images of each class")
    options = parser.parse_args()
    torch.set_num_threads(1)  # products this small only lose time to further threads
    seen, unseen = load_classes()
    print(f"{WAYS}-way {options.shots}-shot, unseen digits 6-9; spread over {TASKS} tasks")
    for ink in ("dark ink", "either ink"):
      import sys
      for seed in (0,1,2):
       for anneal in (0,1):
        torch.manual_seed(seed)
        network = LatentEmbeddingOptimisation()
        tasks = draw_tasks(unseen, TASKS, options.shots, ink)
        with torch.no_grad():
            untrained = network(*tasks)[1]
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        sched=torch.optim.lr_scheduler.CosineAnnealingLR(optimiser,options.steps)
        for _ in range(options.steps):
            losses, _ = network(*draw_tasks(seen, BATCH, options.shots, ink))
            optimiser.zero_grad()
            losses.mean().backward()
            optimiser.step()
            if anneal: sched.step()
        with torch.no_grad():
            curve = [network(*tasks, steps)[1] for steps in range(2 * STEPS + 1)]
        baseline = nearest_centroid(*tasks)
        print(ink,seed,anneal,[round(c.mean().item(),3) for c in curve],baseline.mean(),untrained.mean(),flush=True)


if __name__ == "__main__":
    main()
