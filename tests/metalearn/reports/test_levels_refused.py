"""What a level cannot be made of is refused by name, not by an error of torch's from within.

The kind of hy-struggle/PRGC#16, "grad can be implicitly created only for scalar outputs": true,
and no help to whoever wrote the loss of one level among several.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn import DisconnectedLossError, Implicit, MetalearnError, MultilevelError
from metalearn.multilevel import (
    INSTALL_COMMAND,
    Bounded,
    ConjugateGradient,
    Darts,
    Level,
    Multilevel,
    Neumann,
    Positive,
    Sama,
)
from tests.metalearn.reports.levels import holder, level

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)


def problem(where: str, spoil: Callable[[Tensor], Any]) -> Multilevel:
    """Two levels, of which one returns its loss spoilt."""
    w, top = holder([1.0, 2.0]), holder([1.0, 1.0])
    losses = {
        "inner": lambda _: (w.v - top.v).square().sum(),
        "outer": lambda _: w.v.square().sum(),
    }
    plain = losses[where]
    losses[where] = lambda _: spoil(plain(_))
    inner = level("inner", w, losses["inner"], 0.1)
    return Multilevel([inner, level("outer", top, losses["outer"], 0.1)])


@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: torch.stack([x, x]),
            r"as a scalar .* got a tensor of shape \(2,\) .*\.mean\(\)",
        ),
        (lambda x: x.expand(2, 3), r"as a scalar .* got a tensor of shape \(2, 3\)"),
        (lambda x: x.expand(0), r"got a tensor of shape \(0,\)"),
        (lambda x: x.item(), r"as a scalar .* got float [0-9.]+; .* leave out \.item\(\)"),
        (lambda x: None, "got NoneType None"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: x.detach().long(), "floating-point tensor, got a tensor .*int64"),
        (lambda x: x.to(torch.complex128), "floating-point tensor, got a tensor .*complex128"),
        (lambda x: {"fit": x}, "under the key 'loss', got the keys fit"),
        (lambda x: {}, "under the key 'loss', got the keys none"),
        (lambda x: {"loss": x.item()}, "as a scalar .* got float"),
        (
            lambda x: {"loss": x, "rows": x.expand(3)},
            r"term 'rows' .* got a tensor of shape \(3,\)",
        ),
    ],
)
def test_a_loss_is_a_scalar_tensor(where: str, spoil: Any, message: str) -> None:
    with pytest.raises(MultilevelError, match=message) as error:
        problem(where, spoil).run(1)
    assert f"level {where!r}" in str(error.value)
    assert isinstance(error.value, MetalearnError)


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_a_loss_has_a_graph(where: str) -> None:
    with pytest.raises(DisconnectedLossError, match=f"level '{where}' .* without a graph"):
        problem(where, torch.Tensor.detach).run(1)


@pytest.mark.parametrize("where", ["inner", "outer"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.reshape(1),
        lambda x: x.reshape(1, 1),
        lambda x: {"loss": x.reshape(1), "half": x / 2, "name": "plain"},
        lambda x: {"loss": x, "one": x.reshape(1)},
    ],
)
def test_one_element_is_a_scalar(where: str, spoil: Any) -> None:
    """Whatever its axes; to the bits of the scalar."""
    plain, other = problem(where, lambda x: x), problem(where, spoil)
    plain.run(5)
    other.run(5)
    for one, two in zip(plain.levels, other.levels, strict=True):
        assert torch.equal(one.parameters[0], two.parameters[0])


class Closing(torch.optim.SGD):
    """An optimiser of one's own that evaluates the loss itself."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Closing])
def test_an_optimiser_that_evaluates_the_loss_itself_is_refused(kind: Any) -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(MultilevelError, match=f"got {kind.__name__}, whose .* asks for closure"):
        level("w", module, torch.sum, 0.1, optimiser=kind(module.parameters(), lr=0.1))


def test_a_scheduler_that_asks_for_a_metric_is_refused() -> None:
    module = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser)
    with pytest.raises(MultilevelError, match=r"got ReduceLROnPlateau, whose .* asks for metrics"):
        level("w", module, torch.sum, 0.1, optimiser=optimiser, scheduler=plateau)
    for kind in (
        torch.optim.lr_scheduler.ConstantLR(optimiser),
        torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, 10),
        torch.optim.lr_scheduler.LambdaLR(optimiser, float),
    ):
        level("w", module, torch.sum, 0.1, optimiser=optimiser, scheduler=kind)


def test_an_optimiser_of_any_other_kind_is_taken() -> None:
    """`darts` and the inverse curvatures need to know nothing of it."""
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Rprop):
        w, top = holder(0.0), holder(1.0)
        inner = level(
            "w",
            w,
            lambda _, w=w, top=top: (w.v - top.v).square(),
            0.0,
            optimiser=kind(w.parameters(), lr=0.01),
        )
        outer = level("l", top, lambda _, w=w: (w.v - 3).square(), 0.1)
        Multilevel([inner, outer]).run(3)
        assert top.v.item() != 1.0


# --- what lies around -----------------------------------------------------------------------------


def test_bettys_logger_has_its_level_back() -> None:
    logger = logging.getLogger("betty")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        problem("inner", lambda x: x)
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(
    ("initial", "dtype"),
    [
        (0.5, torch.float32),
        (np.float64(0.5), torch.float32),
        ([0.5, 2.0], torch.float32),
        (torch.tensor(2), torch.float32),
        (torch.tensor(0.5, dtype=torch.float64), torch.float64),
        (torch.tensor(0.5, dtype=torch.bfloat16), torch.bfloat16),
    ],
    ids=str,
)
def test_a_learned_number_has_torchs_default_dtype_or_the_tensors(
    initial: Any, dtype: torch.dtype
) -> None:
    """NumPy's float64 is a number like any other."""
    assert Positive(initial)().dtype == dtype


def test_defaults() -> None:
    """What a user who sets nothing gets."""
    assert (Darts().perturbation, Sama().perturbation) == (0.01, 0.01)
    assert (Neumann().iterations, Neumann().step_size) == (10, 0.1)
    assert (ConjugateGradient().iterations, ConjugateGradient().max_residual) == (5, 0.5)
    assert (Bounded(0.5).low, Bounded(0.5).high) == (0.0, 1.0)
    assert (Implicit().solver, Implicit().iterations, Implicit().tolerance) == ("cg", 20, 1e-6)
    assert (Implicit().damping, Implicit().proximal, Implicit().stop) == (0.0, 0.0, 0.0)
    assert Implicit().max_residual == 1e-3
    module = nn.Linear(1, 1)
    plain = Level(
        name="w",
        module=module,
        optimiser=torch.optim.SGD(module.parameters(), lr=0.1),
        loss=torch.sum,
        batches=[1],
    )
    assert plain.method == Darts()
    assert (plain.unroll_steps, plain.warmup_steps, plain.clip_norm) == (1, 0, 0.0)
