"""Multilevel problems: resume to the bit, three levels, kept optimisers, and named errors."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn import DisconnectedLossError, MissingBettyError, MultilevelError, NonFiniteLossError
from metalearn.multilevel.bridge import INSTALL_COMMAND
from metalearn.multilevel.hypergradients import ConjugateGradient, Darts, Neumann, Sama
from metalearn.multilevel.levels import BatchStream, Level
from metalearn.multilevel.problem import Multilevel, Progress
from metalearn.multilevel.ranges import Bounded, Positive

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)


def nothing(step: int) -> int:
    return step


def loader(seed: int) -> DataLoader[Any]:
    """Shuffled, so that its order comes from torch's generator."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)


def build(method: str = "sama", seed: int = 0) -> Multilevel:
    """A network with dropout and running statistics, whose decay is learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
    settings = nn.ModuleDict({"decay": Positive(0.1), "share": Bounded(0.5, 0.2, 0.9)})
    optimiser = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 1e-2, "weight_decay": 0.0},
            {"params": [*model[1].parameters(), *model[4].parameters()], "lr": 3e-3},
        ]
    )

    def fit(batch: list[Tensor]) -> Tensor:
        x, y = batch
        return (model(x) - y).square().mean()

    def penalised(batch: list[Tensor]) -> dict[str, Any]:
        loss = fit(batch)
        weights = model[4].weight.square().sum()
        total = settings["share"]() * loss + settings["decay"]() * weights
        return {"loss": total, "fit": loss.detach()}

    inner = Level(
        name="weights",
        module=model,
        optimiser=optimiser,
        loss=penalised,
        batches=loader(1),
        scheduler=torch.optim.lr_scheduler.StepLR(optimiser, 4, 0.5),
        clip_norm=1.0,
        hypergradient=method,
        unroll_steps=2,
        warmup_steps=3,
    )
    outer = Level(
        name="settings",
        module=settings,
        optimiser=torch.optim.Adam(settings.parameters(), lr=0.05),
        loss=fit,
        batches=loader(2),
    )
    return Multilevel([inner, outer], seed=seed)


def bits(problem: Multilevel) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(problem.state_dict())
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | float | int)]


@pytest.mark.parametrize("method", ["darts", "sama", "neumann"])
def test_resume_is_bit_exact(tmp_path: Path, method: str) -> None:
    """Stopped at steps 5 and 8 (in warm-up's wake, amid an epoch), saved, loaded, continued."""
    whole = build(method)
    whole.run(13)

    state: dict[str, Any] | None = None
    for stop in (5, 8, 13):
        part = build(method)
        if state is not None:
            part.load_state_dict(state)
        torch.rand(stop)  # whatever the surroundings draw
        part.run(stop)
        torch.save(part.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert part.steps == whole.steps == {"weights": 13, "settings": 5}
    assert len(bits(part)) == len(bits(whole)) > 30
    assert all(torch.equal(a, b) for a, b in zip(bits(part), bits(whole), strict=True))
    other = build(method, seed=1)
    other.run(13)
    assert not all(torch.equal(a, b) for a, b in zip(bits(other), bits(whole), strict=True))


def test_the_global_generator_is_left_alone() -> None:
    problem = build()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    problem.run(6)
    assert torch.equal(torch.rand(1), expected)


def test_the_optimiser_stays_the_users_own() -> None:
    """Groups keep their rates and decay; Betty would rebuild them from the defaults."""
    problem = build()
    optimiser = problem.levels[0].optimiser
    problem.run(4)
    assert [group["lr"] for group in optimiser.param_groups] == [5e-3, 1.5e-3]  # halved once
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.0, 0.01]
    assert len(optimiser.state) == 6


def test_frozen_parameters_stay() -> None:
    problem = build("neumann")
    frozen = problem.levels[0].module[0].weight  # type: ignore[index]
    frozen.requires_grad_(False)
    before = frozen.clone()
    problem.run(6)
    assert torch.equal(frozen, before)
    assert problem.steps["settings"] == 2


@pytest.mark.parametrize("method", ["darts", "sama", "neumann"])
def test_an_outer_step_leaves_the_lower_level_as_it_was(method: str) -> None:
    """Not a bit of weights or running statistics: only the inner steps move them."""
    problem = build(method)
    alone = build(method)
    problem.run(4)  # the fourth step is followed by an outer one
    inner = alone.levels[0]
    endless = Level(
        **{**vars(inner), "warmup_steps": 1000}  # never an outer step
    )
    never = Multilevel([endless, alone.levels[1]])
    never.run(4)
    assert problem.steps["settings"] == 1
    assert never.steps["settings"] == 0
    for name, value in problem.levels[0].module.state_dict().items():
        assert torch.equal(value, never.levels[0].module.state_dict()[name]), name


def test_warm_up_and_unrolling_decide_when_the_outer_level_steps() -> None:
    """Warm-up 3, unrolling 2: after steps 4, 6, 8."""
    problem, turns = build(), []
    done: list[tuple[int, int]] = []

    def log(progress: Progress) -> None:
        if "settings" in progress.terms:
            turns.append(progress.step)
        assert set(progress.terms["weights"]) == {"loss", "fit"}
        assert progress.terms["weights"]["fit"] > 0

    problem.run(8, log=log, progress=lambda step, total: done.append((step, total)))
    assert turns == [4, 6, 8]
    assert done == [(step, 8) for step in range(1, 9)]
    problem.run(8)
    assert problem.steps["weights"] == 8


def quadratic(
    name: str, start: float, loss: Callable[[Tensor], Tensor], rate: float, **how: Any
) -> Level:
    """A level of one number."""
    module = nn.ParameterDict({"x": nn.Parameter(torch.tensor(start, dtype=torch.float64))})
    return Level(
        name=name,
        module=module,
        optimiser=torch.optim.SGD(module.parameters(), lr=rate),
        loss=lambda _: loss(module["x"]),
        batches=nothing,
        **how,
    )


def number(level: Level) -> Tensor:
    value: Tensor = level.module["x"]  # type: ignore[index]
    return value


@pytest.mark.parametrize("method", [ConjugateGradient(iterations=1), Neumann(), Darts(), Sama()])
def test_three_levels_in_a_chain(method: Any) -> None:
    """Bottom w* = a + 1, middle u* = w^2 / 2, top (u - 2)^2: a = 1 from any start near it.

    The top reaches `a` through both solutions: du/da = (du/dw) (dw/da) = w.
    """
    top = quadratic("top", 0.2, lambda a: (number(middle) - 2).square() + 0 * a, 0.02)
    bottom = quadratic(
        "bottom",
        0.0,
        lambda w: (w - number(top) - 1).square() / 2,
        0.5,
        hypergradient=method,
        unroll_steps=6,
    )
    middle = quadratic(
        "middle",
        0.0,
        lambda u: (u - number(bottom).square() / 2).square() / 2,
        0.8,
        hypergradient=method,
        unroll_steps=2,
    )
    problem = Multilevel([bottom, middle, top], influences={"top": ["bottom"]})
    problem.run(2400)
    assert problem.steps == {"bottom": 2400, "middle": 400, "top": 200}
    assert number(top).item() == pytest.approx(1.0, abs=1e-4)
    assert number(bottom).item() == pytest.approx(2.0, abs=1e-4)
    assert number(middle).item() == pytest.approx(2.0, abs=1e-4)


def test_three_levels_nested() -> None:
    """Each level shapes the loss of the one below: bottom, middle, top.

    The middle minimises (w - t)^2 / 2 + b^2 - t b / 4 over b, with w = b: b* = 5 t / 12. The top
    minimises (b - 1)^2, so t = 12 / 5. The mixed derivative that darts sees of the middle's own
    loss, -1/4, has the sign of the true one, -5/4, which is all that a root needs.
    """
    top = quadratic("top", 1.0, lambda t: (number(middle) - 1).square() + 0 * t, 1.0)
    middle = quadratic(
        "middle",
        0.0,
        lambda b: (number(bottom) - number(top)).square() / 2 + b.square() - number(top) * b / 4,
        0.2,
        unroll_steps=8,
    )
    bottom = quadratic(
        "bottom", 0.0, lambda w: (w - number(middle)).square() / 2, 0.5, unroll_steps=4
    )
    problem = Multilevel(
        [bottom, middle, top], influences={"middle": ["bottom"], "top": ["middle"]}
    )
    problem.run(3200)
    assert problem.steps == {"bottom": 3200, "middle": 800, "top": 100}
    assert number(top).item() == pytest.approx(2.4, abs=0.02)
    assert number(middle).item() == pytest.approx(1.0, abs=0.01)


def test_a_level_that_does_not_matter_is_named() -> None:
    top = quadratic("top", 0.2, lambda a: (number(bottom) - a).square(), 0.1)
    bottom = quadratic("bottom", 0.0, lambda w: (w - 1).square(), 0.5)
    with pytest.raises(DisconnectedLossError, match=r"'bottom' to depend on .* level 'top'"):
        Multilevel([bottom, top]).run(1)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_moves() -> None:
    top = quadratic("top", 0.2, lambda a: number(bottom).log(), 0.1)
    bottom = quadratic("bottom", -1.0, lambda w: (w - number(top) + 4).square(), 0.0)
    problem = Multilevel([bottom, top])
    with pytest.raises(NonFiniteLossError, match=r"level 'top', got nan at its step 1"):
        problem.run(1)
    assert number(top).item() == 0.2


def test_a_gradient_of_the_lowest_level_that_is_not_finite_stops_it() -> None:
    """Of a finite loss: sqrt has no slope at 0. Its weight stays what it was."""
    top = quadratic("top", 0.2, lambda a: number(bottom).square() + a.square(), 0.1)
    bottom = quadratic("bottom", 0.0, lambda w: w.abs().sqrt() + 0 * number(top), 0.1)
    with pytest.raises(NonFiniteLossError, match=r"finite gradient of level 'bottom'"):
        Multilevel([bottom, top]).run(1)
    assert number(bottom).item() == 0.0


def test_a_hypergradient_that_is_not_finite_stops_before_the_optimiser_moves() -> None:
    top = quadratic("top", 0.2, lambda a: number(bottom).sqrt(), 0.1)
    bottom = quadratic("bottom", 0.0, lambda w: number(top) * w.square(), 0.0)
    with pytest.raises(NonFiniteLossError, match=r"finite hypergradient of level 'top'"):
        Multilevel([bottom, top]).run(1)
    assert number(top).item() == 0.2


def test_curvature_that_is_not_positive_is_named() -> None:
    top = quadratic("top", 0.2, lambda a: number(bottom) * 1.0, 0.1)
    bottom = quadratic("bottom", 1.0, lambda w: -number(top) * w.square(), 0.0, hypergradient="cg")
    with pytest.raises(NonFiniteLossError, match=r"expected positive curvature .* 'bottom'"):
        Multilevel([bottom, top]).run(1)


def test_conjugate_gradients_stop_at_an_exact_solution() -> None:
    """Betty's own would divide zero by zero in the second iteration."""
    top = quadratic("top", 1.0, lambda a: number(bottom).square(), 0.125)
    bottom = quadratic(
        "bottom",
        1.0,
        lambda w: (w - number(top)).square(),
        0.0,
        hypergradient=ConjugateGradient(iterations=9),
    )
    Multilevel([bottom, top]).run(1)
    assert number(top).item() == 1.0 - 0.125 * 2.0  # dw/da = 1


def test_bettys_own_conjugate_gradients_are_wrong() -> None:
    """Why ours stand in for it; when this fails, Betty's may be used again."""
    betty_cg = importlib.import_module("betty.hypergradient.cg").cg
    own = importlib.import_module("metalearn.multilevel.conjugate").indirect_gradient
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)

    class Stand:
        paths: tuple[()] = ()
        cur_batch = None

        class config:
            cg_iterations, cg_alpha = 2, 1.0

        class level:
            name = "inner"

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def parameters(self) -> list[Tensor]:
            return [self.tensor]

        trainable_parameters = parameters

        def training_step_exec(self, batch: None) -> Tensor:
            return w @ hessian @ w / 2 - a @ w

    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = torch.linalg.solve(hessian, v)  # -d2L/da dw is the identity
    (ours,) = own([v], Stand(w), Stand(a), False)
    (bettys,) = betty_cg([v], Stand(w), Stand(a), False)
    assert torch.allclose(ours, exact, atol=0, rtol=1e-12)
    assert (bettys - exact).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dart", "did you mean 'darts'"),
        ("unrolled", r"LatentAdapter with Unrolled\(\)"),
        ("reinforce", "score function"),
    ],
)
def test_methods_that_are_not_there_are_named(name: str, message: str) -> None:
    with pytest.raises(MultilevelError, match=message):
        quadratic("bottom", 0.0, torch.square, 0.1, hypergradient=name)


def test_levels_that_do_not_fit_are_named() -> None:
    bottom, top = (quadratic(name, 0.0, torch.square, 0.1) for name in ("bottom", "top"))
    middle = quadratic("middle", 0.0, torch.square, 0.1, hypergradient="cg")
    three = [bottom, middle, top]
    with pytest.raises(MultilevelError, match="at least two levels"):
        Multilevel([bottom])
    with pytest.raises(MultilevelError, match="expected `influences` for 3 levels"):
        Multilevel(three)
    with pytest.raises(MultilevelError, match="did you mean 'bottom'"):
        Multilevel(three, influences={"top": ["botom"]})
    with pytest.raises(MultilevelError, match="lowest first"):
        Multilevel(three, influences={"bottom": ["top"]})
    with pytest.raises(MultilevelError, match="expected darts or sama in level 'middle'"):
        Multilevel(three, influences={"middle": ["bottom"]})
    shared = Level(**{**vars(bottom), "name": "other"})
    with pytest.raises(MultilevelError, match="share one"):
        Multilevel([bottom, shared])


def test_parts_of_a_level_that_do_not_fit_are_named() -> None:
    level = vars(quadratic("bottom", 0.0, torch.square, 0.1))
    with pytest.raises(MultilevelError, match="unroll_steps >= 1"):
        Level(**{**level, "unroll_steps": 0})
    with pytest.raises(MultilevelError, match="hold all parameters of its optimiser"):
        Level(**{**level, "module": nn.Linear(1, 1)})
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(MultilevelError, match="scheduler of the optimiser"):
        Level(**{**level, "scheduler": torch.optim.lr_scheduler.StepLR(other, 1)})
    rmsprop = torch.optim.RMSprop(level["module"].parameters())
    lower = Level(**{**level, "optimiser": rmsprop, "hypergradient": "sama"})
    with pytest.raises(MultilevelError, match=r"SGD, Adam or AdamW .* got RMSprop"):
        Multilevel([lower, quadratic("top", 0.0, torch.square, 0.1)])
    level["module"].requires_grad_(False)
    with pytest.raises(MultilevelError, match="require a gradient"):
        Level(**level)


def test_a_state_of_another_problem_is_refused() -> None:
    state = build().state_dict()
    with pytest.raises(MultilevelError, match=r"seed 1, got .* seed 0"):
        build(seed=1).load_state_dict(state)
    with pytest.raises(MultilevelError, match="expected the state of levels"):
        build().load_state_dict({"seed": 0, "levels": {}})


def test_batches_are_addressed_by_their_number() -> None:
    """A shuffled loader gives batch 7 the same rows after 0..6 and on its own."""
    stream = BatchStream(loader(0), "weights", seed=3)
    in_order = [stream(index)[0] for index in range(8)]
    alone = BatchStream(loader(0), "weights", seed=3)
    assert torch.equal(alone(7)[0], in_order[7])
    assert torch.equal(alone(1)[0], in_order[1])
    epoch = torch.cat(in_order[:3]).sum(1).sort().values
    assert torch.allclose(epoch, torch.cat(in_order[3:6]).sum(1).sort().values)
    assert not torch.equal(in_order[0], in_order[3]), "every epoch has an order of its own"
    drawing = BatchStream(lambda step: torch.rand(2), "weights", seed=3)
    assert torch.equal(drawing(4), drawing(4))
    with pytest.raises(MultilevelError, match="function of the step"):
        BatchStream(iter([1, 2]), "weights", seed=0)


def test_betty_stays_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Its logger writes to stdout."""
    build().run(5)
    assert capfd.readouterr().out == ""


def test_without_betty_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingBettyError) as error:
        build()
    assert INSTALL_COMMAND in str(error.value)


def test_settings_refuse_a_start_on_their_bounds() -> None:
    with pytest.raises(MultilevelError, match="exact 0 cannot be learned"):
        Positive(0.0)
    with pytest.raises(MultilevelError, match=r"strictly between 0\.0 and 1\.0, got 1"):
        Bounded(1.0)
    assert Bounded(0.3, 0.2, 0.9)().item() == pytest.approx(0.3, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("method", ["darts", "sama", "neumann", "cg"])
def test_on_cuda_as_on_the_cpu(method: str) -> None:
    """Same data and quadratic losses, so the settings agree to rounding."""

    def solve(device: str) -> float:
        module = nn.Linear(3, 1, bias=False).to(device)
        nn.init.constant_(module.weight, 0.1)
        decay = Positive(0.5).to(device)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        inner = Level(
            name="weights",
            module=module,
            optimiser=torch.optim.SGD(module.parameters(), lr=0.1),
            loss=lambda x: (
                (module(x) - x.sum(1, keepdim=True)).square().mean()
                + decay() * module.weight.square().sum()
            ),
            batches=lambda step: x,
            hypergradient=method,
        )
        outer = Level(
            name="decay",
            module=decay,
            optimiser=torch.optim.SGD(decay.parameters(), lr=0.1),
            loss=lambda x: (module(x) - x.sum(1, keepdim=True)).square().mean(),
            batches=lambda step: x,
        )
        Multilevel([inner, outer], device=device).run(20)
        return decay().item()

    assert solve("cuda") == pytest.approx(solve("cpu"), rel=1e-4)
