"""MAML and its kin on few-shot tasks: sines as published, and unseen digits by unseen writers.

    PYTHONPATH=$PWD python benchmarks/few_shot.py --steps 2000 --seeds 0 1 2

Every training is one row of results/few_shot.json, written when it ends; a row of the same problem,
method and seed is replaced. All methods have the same network, tasks, meta batch and outer steps.

* ``sines-5``, ``sines-10``: the published rules of MAML: amplitude 0.1 to 5, phase 0 to pi, points
  in [-5, 5], a ReLU network of 40 and 40 units, inner steps of 0.01, 25 tasks a step,
  Adam at 0.001; mean squared error of 10 query points.
* ``digits``: pictures of 4 classes, one of each in the support, 5 in the query. Meta-training:
  digits 0 to 5 of 30 writers; test: 6 to 9 of 13 others. A ReLU network of 64 and 64 units,
  steps of 0.4.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import RESULTS, merged, origin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metalearn import ElementwiseStepSize, FirstOrder, Implicit, LatentAdapter, functional
from metamae import load_dataset
from metamae.files import write_json, write_text
from metamae.randomness import generator
from metamae.training.provenance import device_name

METHODS = ("maml", "first_order", "anil", "meta_sgd", "imaml", "reptile", "joint")
PROBLEMS = ("sines-5", "sines-10", "digits")
SHOWN = (0, 1, 5, 10)
TASKS, BATCH, WAYS = 600, 25, 4
FILE = RESULTS / "few_shot.json"
Tasks = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and targets of the support, then of the query, task first."""


class Sines:
    """Sines of random amplitude and phase."""

    def __init__(self, shots: int) -> None:
        self.shots, self.step_size = shots, 0.01

    def network(self) -> nn.Sequential:
        """Maps a point to a value."""
        return perceptron(1, 40, 1)

    def draw(self, tasks: int, random: torch.Generator, *, test: bool) -> Tasks:
        """Tasks of meta-training, or those of the test, which are of the same kind."""
        amplitude, phase = torch.rand(2, tasks, 1, 1, generator=random)
        x = 10 * torch.rand(tasks, self.shots + 10, 1, generator=random) - 5
        y = (0.1 + 4.9 * amplitude) * torch.sin(x - math.pi * phase)
        shots = self.shots
        return x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:]

    def loss(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Of every task."""
        return (predicted - y).square().mean((1, 2))

    score = loss


class Digits:
    """Classes of digits that meta-training does not have, by writers that it does not have."""

    def __init__(self) -> None:
        self.step_size = 0.4
        data = load_dataset("digits")
        self.pictures: dict[bool, Tensor] = {}
        for test, name, classes in ((False, "train", range(6)), (True, "test", range(6, 10))):
            part = data.need(name)
            assert part.labels is not None
            x = part.batch(torch.arange(len(part)))["image"].float().flatten(1)
            labels = torch.as_tensor(np.asarray(part.labels))
            groups = [x[labels == label] for label in classes]
            least = min(len(group) for group in groups)  # a few pictures of the others stay out
            self.pictures[test] = torch.stack([group[:least] for group in groups])

    def network(self) -> nn.Sequential:
        """Maps a picture to the scores of all classes."""
        return perceptron(64, 64, WAYS)

    def draw(self, tasks: int, random: torch.Generator, *, test: bool) -> Tasks:
        """Tasks of one set of digits; which class is which is drawn too."""
        groups, each = self.pictures[test], 6  # (classes, pictures, 64)
        chosen = torch.rand(tasks, len(groups), generator=random).argsort(1)[:, :WAYS]
        drawn = torch.rand(tasks, WAYS, groups.shape[1], generator=random).topk(each, 2).indices
        x = groups[chosen.unsqueeze(2), drawn]
        y = torch.arange(WAYS).reshape(1, WAYS, 1).expand(tasks, WAYS, each)
        support, query = (x[:, :, :1], y[:, :, :1]), (x[:, :, 1:], y[:, :, 1:])
        return tuple(part.flatten(1, 2) for part in (*support, *query))  # type: ignore[return-value]

    def loss(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Of every task."""
        return cross_entropy(predicted.transpose(1, 2), y, reduction="none").mean(1)

    def score(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Accuracy of every task."""
        return (predicted.argmax(2) == y).float().mean(1)


def perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; the head is layer 4."""
    hidden = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def build(method: str, net: Any, step_size: float) -> LatentAdapter:
    """The inner loop of meta-training."""
    if method == "meta_sgd":
        return LatentAdapter(ElementwiseStepSize(step_size, net.params))
    if method == "imaml":  # of the optimum near the start; few products, as published
        policy = Implicit(proximal=2.0, damping=2.0, iterations=5, max_residual=math.inf)
        return LatentAdapter(step_size, steps=16, differentiation=policy)
    if method == "reptile":
        return LatentAdapter(step_size, steps=8, differentiation=FirstOrder())
    policies = {"first_order": FirstOrder()}
    return LatentAdapter(step_size, differentiation=policies.get(method))


def train(problem: Sines | Digits, method: str, seed: int, steps: int) -> dict[str, Any]:
    """One training and its test: mean scores after the shown numbers of inner steps."""
    torch.manual_seed(generator(seed, "few shot weights").initial_seed())
    network = problem.network()
    net = functional(network, "4" if method == "anil" else None)
    adapter = build(method, net, problem.step_size)
    parameters = [*network.parameters(), *adapter.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3)
    random = generator(seed, "few shot tasks")
    start = time.perf_counter()
    for _ in range(steps):
        optimiser.zero_grad()
        tasks = problem.draw(BATCH, random, test=False)
        outer_gradient(method, problem, net, adapter, tasks)
        optimiser.step()
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "scores": evaluate(problem, net, adapter)}


def outer_gradient(
    method: str, problem: Sines | Digits, net: Any, adapter: LatentAdapter, tasks: Tasks
) -> None:
    """Write the outer gradient of a batch of tasks to ``.grad``."""
    x, y, query_x, query_y = tasks
    if method == "reptile":  # towards weights that are tuned to all examples of a task
        x, y = torch.cat([x, query_x], 1), torch.cat([y, query_y], 1)
        with torch.no_grad():
            tuned: Any = adapter(net.expand(len(x)), lambda p: problem.loss(net.vmap(p, x), y))
            for name, parameter in net.params.items():
                parameter.grad = parameter - tuned.latent[name].mean(0)
        return
    start, support_loss = net.expand(len(x)), lambda p: problem.loss(net.vmap(p, x), y)
    tuned = start if method == "joint" else adapter(start, support_loss).latent
    problem.loss(net.vmap(tuned, query_x), query_y).mean().backward()


@torch.no_grad()
def evaluate(problem: Sines | Digits, net: Any, adapter: LatentAdapter) -> dict[str, float | None]:
    """Mean query score of unseen tasks, the same for all methods and seeds."""
    unseen = problem.draw(TASKS, generator(0, "few shot test"), test=True)
    x, y, query_x, query_y = unseen
    scores: dict[str, float | None] = {}
    plain = LatentAdapter(  # more steps than it was trained for may diverge, which is a result
        adapter.step_size, differentiation=FirstOrder(), check_finite=False
    )
    support_loss: Callable[[Any], Tensor] = lambda p: problem.loss(net.vmap(p, x), y)  # noqa: E731
    for steps in SHOWN:
        tuned = plain(net.expand(TASKS), support_loss, steps=steps).latent
        score = float(problem.score(net.vmap(tuned, query_x), query_y).mean())
        scores[str(steps)] = score if math.isfinite(score) else None
    return scores


def make_problem(name: str) -> Sines | Digits:
    """One of :data:`PROBLEMS`."""
    return Digits() if name == "digits" else Sines(int(name.partition("-")[2]))


def cell(values: list[float | None], scale: float) -> str:
    """Mean over seeds with the half width of its 95 % interval (Student's t)."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return f"diverges in {len(values) - len(found)}"
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values))
    mean, digits = scale * float(np.mean(found)), 1 if scale > 1 else 2
    if quantile is None:
        return f"{mean:.{digits}f}"
    half = scale * quantile * float(np.std(found, ddof=1)) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def make_page(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    text = (
        "# Few-shot learning with metalearn\n\n"
        f"Means over seeds with 95 % intervals (Student's t) of {TASKS} unseen tasks, after so "
        "many inner steps. All methods: the same network, tasks, 25 tasks a step, Adam at 0.001. "
        "`joint` is one network for all tasks, then fine-tuned. Reptile takes 8 inner steps on "
        "support and query, the others one.\n"
    )
    if any(row["method"] == "imaml" for row in rows):
        text += "iMAML takes 16 with a pull of 2 to the start.\n"
    for problem in PROBLEMS:
        own = [row for row in rows if row["problem"] == problem]
        if not own:
            continue
        sines = problem != "digits"
        text += f"\n## {problem}\n\n" + (
            "Mean squared error, less is better, under the published rules (Finn et al. 2017), "
            "whose networks train for 70000 outer steps: these are early, and no reproduction.\n\n"
            if sines
            else "Accuracy in per cent of digits 6 to 9, four classes, one picture of each; chance "
            "is 25. No published number has these rules.\n\n"
        )
        header = [
            "method",
            *(f"{n} steps" for n in SHOWN),
            "outer steps",
            "s",
            "seeds",
        ]
        text += "| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|\n"
        for method in METHODS:
            mine = [row for row in own if row["method"] == method]
            if not mine:
                continue
            scale = 1 if sines else 100
            cells = [cell([row["scores"][str(n)] for row in mine], scale) for n in SHOWN]
            steps = "/".join(dict.fromkeys(str(row["steps"]) for row in mine))
            seconds = f"{np.mean([row['seconds'] for row in mine]):.0f}"
            line = [method, *cells, steps, seconds, str(len(mine))]
            text += "| " + " | ".join(line) + " |\n"
    machines = "; ".join(dict.fromkeys(f"{row['hardware']}, torch {row['torch']}" for row in rows))
    return text + f"\n{machines}; `benchmarks/few_shot.py`.\n"


def main() -> None:
    """Train, and write a row each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.problems:
            for method in options.methods:
                found = train(make_problem(name), method, seed, options.steps)
                row = {"problem": name, "method": method, "seed": seed, "steps": options.steps}
                row |= found | {"hardware": device_name(torch.device("cpu"))} | origin()
                rows = merged(FILE, [row], ("problem", "method", "seed"), _place)
                write_json(FILE, {"rows": rows})
                write_text(FILE.with_suffix(".md"), make_page(rows))
                print(row, flush=True)


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    return PROBLEMS.index(row["problem"]), METHODS.index(row["method"]), row["seed"]


if __name__ == "__main__":
    main()
