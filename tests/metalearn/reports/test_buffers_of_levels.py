"""A level's buffers are moved by its own steps alone, and a run resumes to the bit.

The kind of Tencent/YOLO-Master#262, running statistics that are counted again where a loss is
evaluated again. Here three levels counted 71 batches where 40 were trained on, and a resumed run
counted others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.multilevel import INSTALL_COMMAND, Level, Multilevel
from metalearn.multilevel.buffers import set_aside, slots_below

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)

CHAINED = {"top": ["middle"], "middle": ["bottom"]}
THROUGH = {"top": ["bottom"]}


class Replacing(nn.Module):
    """A running mean that is replaced, not changed in place; and one more buffer, made later."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.late: Tensor | None
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.late = torch.ones(()) if self.late is None else self.late + 1
        return x - 0.1 * self.mean


def network(seed: int, width: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(width, 4), nn.BatchNorm1d(4), Replacing(), nn.Dropout(0.2), nn.Linear(4, 1)
        )


def rows(step: int) -> Tensor:
    return torch.randn(8, 3)  # drawn from the generator that the stream has seeded


def build(influences: dict[str, list[str]], method: str = "darts") -> Multilevel:
    """A network in every level; every loss evaluates all of them, in training mode."""
    nets = {name: network(seed) for seed, name in enumerate(("bottom", "middle", "top"))}

    def fit(x: Tensor) -> Tensor:
        return (nets["bottom"](x) - x.sum(1, keepdim=True)).square()

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "bottom": lambda x: (
            (nets["top"](x).sigmoid() + nets["middle"](x).sigmoid()) * fit(x)
        ).mean(),
        "middle": lambda x: (
            (fit(x) * (1 + nets["top"](x).tanh())).mean() + nets["middle"](x).square().mean()
        ),
        "top": lambda x: (
            fit(x).mean() + nets["middle"](x).square().mean() + 0.1 * nets["top"](x).square().mean()
        ),
    }
    levels = [
        Level(
            name=name,
            module=nets[name],
            optimiser=torch.optim.Adam(nets[name].parameters(), lr=1e-2),
            loss=losses[name],
            batches=rows,
            hypergradient=method,
            unroll_steps=2,
        )
        for name in nets
    ]
    return Multilevel(levels, influences=influences)


def all_influences() -> dict[str, list[str]]:
    """Every loss that a level's parameters enter, as the losses above have it."""
    return {"middle": ["bottom"], "top": ["bottom", "middle"]}


def counted(level: Level) -> int:
    return int(level.module[1].num_batches_tracked)  # type: ignore[index]


def bottom_only(influences: dict[str, list[str]]) -> Multilevel:
    """The report: one network, in the lowest level; the others hold a number each."""
    net = network(0)
    numbers = {name: nn.Parameter(torch.tensor(0.5)) for name in ("middle", "top")}
    fit = lambda x: (net(x) - x.sum(1, keepdim=True)).square().mean()  # noqa: E731
    scale = numbers["middle"] if influences is CHAINED else numbers["top"]
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "bottom": lambda x: scale.exp() * fit(x),
        "middle": lambda x: (
            fit(x) + (numbers["middle"] - numbers["top"]).square()
            if influences is CHAINED
            else fit(x) + (numbers["middle"] - fit(x)).square()
        ),
        "top": lambda x: fit(x) + (numbers["middle"] - 1).square(),
    }
    modules = {"bottom": net} | {n: nn.ParameterList([p]) for n, p in numbers.items()}
    levels = [
        Level(
            name=name,
            module=module,
            optimiser=torch.optim.SGD(module.parameters(), lr=1e-2),
            loss=losses[name],
            batches=rows,
            unroll_steps=2,
        )
        for name, module in modules.items()
    ]
    return Multilevel(levels, influences=influences)


@pytest.mark.parametrize("influences", [CHAINED, THROUGH], ids=["chained", "through"])
def test_the_report(influences: dict[str, list[str]]) -> None:
    """40 steps of the lowest level are 40 batches counted, whatever the others evaluate."""
    problem = bottom_only(influences)
    problem.run(40)
    assert problem.steps == {"bottom": 40, "middle": 20, "top": 10}
    assert counted(problem.levels[0]) == 40


@pytest.mark.parametrize("method", ["darts", "sama"])
def test_every_level_counts_what_its_own_steps_and_those_below_evaluate(method: str) -> None:
    """A module above is evaluated for the first time by a loss below: that does count.

    Otherwise the statistics of a network that only weighs examples would never be taken.
    """
    problem = build(all_influences(), method)
    problem.run(8)
    assert problem.steps == {"bottom": 8, "middle": 4, "top": 2}
    bottom, middle, top = problem.levels
    assert counted(bottom) == 8
    assert counted(middle) == 8 + 4
    assert counted(top) == 8 + 4 + 2
    assert bottom.module[2].late.item() == 8  # type: ignore[index, union-attr]


def test_statistics_are_those_of_plain_training() -> None:
    """To the bit: a loop by hand over the same batches, with the levels above at rest."""
    problem = bottom_only(CHAINED)
    for upper in problem.levels[1:]:
        upper.optimiser.param_groups[0]["lr"] = 0.0
    problem.run(12)

    alone = bottom_only(CHAINED)
    only = alone.levels[0]
    later = Level(**{**vars(only), "warmup_steps": 1000})
    never = Multilevel([later, *alone.levels[1:]], influences=CHAINED)
    never.run(12)
    assert never.steps["middle"] == 0
    for name, value in problem.levels[0].module.state_dict().items():
        assert torch.equal(value, only.module.state_dict()[name]), name


def bits(problem: Multilevel) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(problem.state_dict())
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | float | int)]


@pytest.mark.parametrize("method", ["darts", "sama"])
@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, stop: int, method: str) -> None:
    """The first outer step after a resume looks at what depends on what; nothing may move."""
    whole = build(all_influences(), method)
    whole.run(14)
    killed = build(all_influences(), method)
    killed.run(stop)
    torch.save(killed.state_dict(), tmp_path / "state.pt")
    resumed = build(all_influences(), method)
    for one in resumed.levels:  # made when first used: a state has to find it there
        one.module[2].late = torch.zeros(())  # type: ignore[index, union-attr]
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.rand(stop)
    resumed.run(14)
    assert len(bits(whole)) == len(bits(resumed)) > 60
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(resumed), strict=True))


def test_a_module_within_anothers_keeps_its_own_buffers() -> None:
    """The lower level's module holds the upper one's, as a method holds its settings."""
    inner, outer = network(0), network(1)
    whole = nn.ModuleDict({"inner": inner, "outer": outer})
    fit = lambda x: (inner(x) - x.sum(1, keepdim=True)).square()  # noqa: E731
    lower = Level(
        name="lower",
        module=whole,
        optimiser=torch.optim.SGD(inner.parameters(), lr=1e-2),
        loss=lambda x: (outer(x).sigmoid() * fit(x)).mean(),
        batches=rows,
    )
    upper = Level(
        name="upper",
        module=outer,
        optimiser=torch.optim.SGD(outer.parameters(), lr=1e-2),
        loss=lambda x: fit(x).mean() + 0.1 * outer(x).square().mean(),
        batches=rows,
    )
    kept = {id(module) for module, _ in slots_below(upper, [lower, upper])}
    assert id(inner[1]) in kept
    assert id(outer[1]) not in kept
    Multilevel([lower, upper]).run(6)
    assert int(inner[1].num_batches_tracked) == 6  # type: ignore[arg-type]
    assert int(outer[1].num_batches_tracked) == 12  # type: ignore[arg-type]


def test_a_graph_keeps_the_values_that_it_has_used() -> None:
    """A power iteration changes its vector, uses it, and saves it for the backward pass."""

    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u: Tensor
            self.register_buffer("u", torch.tensor([1.0, 0.0]))

        def forward(self, w: Tensor) -> Tensor:
            with torch.no_grad():
                self.u.copy_(torch.tensor([0.0, 1.0]))
            return (w * self.u).sum()

    module, w = Power(), torch.ones(2, requires_grad=True)
    with set_aside([(module, "u")]):
        value = module(w)
    (gradient,) = torch.autograd.grad(value, w)
    assert torch.equal(gradient, torch.tensor([0.0, 1.0]))
    assert torch.equal(module.u, torch.tensor([1.0, 0.0]))


def test_a_buffer_that_a_loss_holds_itself_is_put_back() -> None:
    """Past the module; also when the evaluation fails."""
    module = nn.BatchNorm1d(2)
    mean = module.running_mean
    assert mean is not None

    def fail() -> Any:
        with set_aside([(module, "running_mean")]):
            mean.add_(1)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail()
    assert module.running_mean is mean
    assert torch.equal(mean, torch.zeros(2))
