"""Two meta-learning problems, and how other libraries and plain torch take their meta-gradient.

A :class:`Problem` is: start somewhere, take gradient steps on every task's support loss, and
differentiate the mean query loss of the tasks through those steps, in the start and in everything
else the losses use. All exact ways compute this same number, checked against float64.

Libraries that adapt the parameters of a module get a module whose parameters are what is adapted;
that is how they are used. Each comes in the forms it supports:

* *batched*: one adapted copy per task with a leading task axis, all tasks at once. This is ours;
  by hand and with any library it means writing the module with that axis (:class:`Copies`).
* *task by task*: an ordinary ``nn.Module`` adapted to one task after the other, one ``backward()``
  each: the loop in the examples of higher and learn2learn. Not written for the decoder, whose
  batch holds 64 tasks.
* *vmap*: ``torch.func``'s own: one task's code, vectorised.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae import build_method, load_dataset, make_config
from metamae.randomness import generator

Leaves = list[Tensor]
Run = Callable[[int], Leaves]
"""Takes a problem's meta-gradient through that many inner steps."""
PEERS = ("higher", "torchopt", "learn2learn")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A meta-gradient to take, in ``start`` and ``others``.

    Attributes:
        start: What adaptation starts from: tensors ``(B, ...)``, or with ``network`` its
            parameters, one start for all tasks.
        others: What the losses use besides.
        support: One loss per task ``(B,)`` of leaves ``(B, ...)``; ``query`` likewise.
        network: A module all of whose parameters are adapted, or ``None``.
        data: With ``network``: support inputs and targets, query inputs and targets, ``(B, ...)``.
    """

    name: str
    tasks: int
    step_size: float
    start: Leaves
    others: Leaves
    support: Callable[[Sequence[Tensor]], Tensor]
    query: Callable[[Sequence[Tensor]], Tensor]
    network: nn.Module | None = None
    data: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def copies(self) -> Leaves:
        """The start of every task."""
        if self.network is None:
            return list(self.start)
        return [leaf.expand(self.tasks, *leaf.shape) for leaf in self.start]

    def gradients(self) -> Leaves:
        """What ``backward()`` left, and a clean slate for the next run."""
        found = []
        for leaf in (*self.start, *self.others):
            found.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            leaf.grad = None
        return found


def mlp(device: torch.device, dtype: torch.dtype) -> Problem:
    """MAML's sine regression: every parameter of a 1-40-40-1 perceptron, for 16 tasks."""
    draw, tasks, points = generator(0, "mlp"), 16, 10

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=draw)).to(device, dtype)

    amplitude, phase = uniform(0.1, 5, tasks, 1, 1), uniform(0, 3.14, tasks, 1, 1)
    xs, xq = uniform(-5, 5, tasks, points, 1), uniform(-5, 5, tasks, points, 1)
    ys, yq = amplitude * (xs - phase).sin(), amplitude * (xq - phase).sin()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
        )
    network.to(device, dtype)

    def loss(leaves: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Of every task, with parameters ``(B, out, in)`` and ``(B, out)``."""
        for number in range(0, len(leaves), 2):
            weight, bias = leaves[number : number + 2]
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            x = x.tanh() if number < len(leaves) - 2 else x
        return (x - y).square().mean((1, 2))

    return Problem(
        name="mlp",
        tasks=tasks,
        step_size=0.01,
        start=list(network.parameters()),
        others=[],
        support=lambda leaves: loss(leaves, xs, ys),
        query=lambda leaves: loss(leaves, xq, yq),
        network=network,
        data=(xs, ys, xq, yq),
    )


def decoder(device: torch.device, dtype: torch.dtype) -> Problem:
    """MetaMAE: the latents of 64 examples of 32 tokens, refined through the pocket decoder."""
    config, dataset, tasks = make_config("sensors"), load_dataset("sensors"), 64
    network = build_method(config, dataset.inputs).network.to(device, dtype)
    batch = {name: x.to(device, dtype) for name, x in dataset.pretrain.batch(range(tasks)).items()}
    split = network.masking.draw(tasks, generator(0, "split")).to(device)
    targets = network.tokenizer.targets(batch)
    with torch.no_grad():
        latent = network.encode(network.visible_tokens(batch, split))
    return Problem(
        name="decoder",
        tasks=tasks,
        step_size=config.adaptation.step_size,
        start=[latent.requires_grad_()],
        others=[*network.decoder.parameters(), *network.heads.parameters()],
        support=lambda leaves: network.support_loss(leaves[0], targets, split),
        query=lambda leaves: network.query_loss(leaves[0], targets, split),
    )


class Copies(nn.Module):
    """What is adapted, as parameters of a module; calling it returns them."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        super().__init__()
        self.count = len(leaves)
        for number, leaf in enumerate(leaves):
            self.register_parameter(f"leaf{number}", nn.Parameter(leaf.detach().clone()))

    def forward(self) -> Leaves:
        # By attribute: some libraries put other tensors there.
        return [getattr(self, f"leaf{number}") for number in range(self.count)]


Scalar = Callable[[Any], Tensor]
"""A loss, given the module in the state it is in."""

Adapt = Callable[[Scalar, Scalar, int], None]
"""That many steps on the first loss from the module's parameters; ``backward()`` on the second."""

Library = Callable[[nn.Module, float], Adapt]
"""Set up once, outside the measured run, for a module and a step size."""


def batched(problem: Problem, library: Library) -> Run:
    """All tasks at once."""
    module = Copies(problem.copies())
    adapt, copies = library(module, problem.step_size), list(module.parameters())

    def run(steps: int) -> Leaves:
        with torch.no_grad():
            for copy, leaf in zip(copies, problem.copies(), strict=True):
                copy.copy_(leaf)
                copy.grad = None
        adapt(
            lambda module: problem.support(module()).sum(),
            lambda module: problem.query(module()).mean(),
            steps,
        )
        for leaf, copy in zip(problem.start, copies, strict=True):
            leaf.grad = copy.grad if problem.network is None else copy.grad.sum(0)
        return problem.gradients()

    return run


def task_by_task(problem: Problem, library: Library) -> Run:
    """One task after the other."""
    assert problem.network is not None
    adapt = library(problem.network, problem.step_size)

    def run(steps: int) -> Leaves:
        assert problem.data is not None
        for xs, ys, xq, yq in zip(*problem.data, strict=True):
            adapt(
                lambda network, x=xs, y=ys: F.mse_loss(network(x), y),
                lambda network, x=xq, y=yq: F.mse_loss(network(x), y) / problem.tasks,
                steps,
            )
        return problem.gradients()

    return run


def use_higher(higher: Any) -> Library:
    def library(module: nn.Module, step_size: float) -> Adapt:
        sgd = torch.optim.SGD(module.parameters(), lr=step_size)

        def adapt(inner: Scalar, outer: Scalar, steps: int) -> None:
            with higher.innerloop_ctx(module, sgd, copy_initial_weights=False) as (fast, optimiser):
                for _ in range(steps):
                    optimiser.step(inner(fast))
                outer(fast).backward()

        return adapt

    return library


def use_torchopt(torchopt: Any) -> Library:
    def library(module: nn.Module, step_size: float) -> Adapt:
        optimiser = torchopt.MetaSGD(module, lr=step_size)
        states = [(x, torchopt.extract_state_dict(x, by="reference")) for x in (module, optimiser)]

        def adapt(inner: Scalar, outer: Scalar, steps: int) -> None:
            for _ in range(steps):
                optimiser.step(inner(module))
            outer(module).backward()
            for target, state in states:
                torchopt.recover_state_dict(target, state)

        return adapt

    return library


def use_learn2learn(learn2learn: Any, *, first_order: bool = False) -> Library:
    def library(module: nn.Module, step_size: float) -> Adapt:
        maml = learn2learn.algorithms.MAML(module, lr=step_size, first_order=first_order)

        def adapt(inner: Scalar, outer: Scalar, steps: int) -> None:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(inner(learner))
            outer(learner).backward()

        return adapt

    return library


def hand_one(module: nn.Module, step_size: float) -> Adapt:
    """``torch.autograd.grad`` in a loop, for one module, by ``functional_call``."""
    names = [name for name, _ in module.named_parameters()]

    def adapt(inner: Scalar, outer: Scalar, steps: int) -> None:
        leaves = list(module.parameters())

        def call(x: Tensor) -> Tensor:
            return torch.func.functional_call(module, dict(zip(names, leaves, strict=True)), x)

        for _ in range(steps):
            rows = torch.autograd.grad(inner(call), leaves, create_graph=True)
            leaves = _descend(leaves, rows, step_size)
            del rows
        outer(call).backward()

    return adapt


def hand_batched(problem: Problem, *, first_order: bool = False) -> Run:
    """The same for all tasks at once. Keeps no more alive than it must."""

    def run(steps: int) -> Leaves:
        leaves = problem.copies()
        for _ in range(steps):
            loss = problem.support(leaves).sum()
            rows = torch.autograd.grad(loss, leaves, create_graph=not first_order)
            leaves = _descend(leaves, rows, problem.step_size)
            del loss, rows
        problem.query(leaves).mean().backward()
        return problem.gradients()

    return run


def _descend(leaves: Sequence[Tensor], rows: Sequence[Tensor], step_size: float) -> Leaves:
    return [leaf - step_size * row for leaf, row in zip(leaves, rows, strict=True)]


def functional(problem: Problem) -> Run:
    """``torch.func``: inner gradients by ``grad``; ``vmap`` over networks.

    The whole meta-gradient is one ``grad`` of ``grad`` for the network. The decoder's parameters
    are used through a module's methods, so there the outer gradient is ``backward()``'s.
    """
    return _functional_latent(problem) if problem.network is None else _functional_network(problem)


def _functional_network(problem: Problem) -> Run:
    names = [name for name, _ in problem.network.named_parameters()]

    def loss(leaves: Leaves, x: Tensor, y: Tensor) -> Tensor:
        parameters = dict(zip(names, leaves, strict=True))
        return F.mse_loss(torch.func.functional_call(problem.network, parameters, x), y)

    def outer(leaves: Leaves, steps: int) -> Tensor:
        def task(xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
            adapted = leaves
            for _ in range(steps):
                rows = torch.func.grad(loss)(adapted, xs, ys)
                adapted = _descend(adapted, rows, problem.step_size)
            return loss(adapted, xq, yq)

        return torch.func.vmap(task)(*problem.data).mean()

    start = [leaf.detach() for leaf in problem.start]
    return lambda steps: torch.func.grad(outer)(start, steps)


def _functional_latent(problem: Problem) -> Run:
    inner = torch.func.grad(lambda leaves: problem.support(leaves).sum())

    def run(steps: int) -> Leaves:
        leaves = problem.copies()
        for _ in range(steps):
            leaves = _descend(leaves, inner(leaves), problem.step_size)
        problem.query(leaves).mean().backward()
        return problem.gradients()

    return run


def load(name: str) -> tuple[Any, str]:
    """A peer and its version; ``(None, reason)`` where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these libraries are older than the torch they meet
            library = importlib.import_module(name)
        return library, importlib.metadata.version(name)
    except Exception as error:  # whatever it is, the others are still measured
        return None, f"not measured: import fails with {type(error).__name__}: {error}"
