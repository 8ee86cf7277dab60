"""What stands around an adapter: activation checkpointing, compilers, settings, curvature.

Checkpointing: https://github.com/pytorch/pytorch/issues/78917 (a different number of saved
tensors); compilers: https://github.com/pytorch/pytorch/issues/104674.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalearn import (
    Checkpointed,
    ConvergenceWarning,
    CurvatureError,
    CurvatureWarning,
    FiniteDifference,
    FirstOrder,
    FixedStepSize,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    MetalearnError,
    SettingError,
    Unrolled,
)

ALL = [Unrolled(), Checkpointed(), FirstOrder(), FiniteDifference(), Implicit(damping=5.0)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def values(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("policy", ALL, ids=repr)
@pytest.mark.parametrize("determinism", ["default", "none"])
def test_inside_activation_checkpointing(policy: GradientPolicy, determinism: str) -> None:
    """On the first call as on the next, and equal to the call without it."""
    adapter = LatentAdapter(0.1, steps=2, differentiation=policy)

    def gradients(around: Any) -> tuple[Tensor, ...]:
        latent, weight = values(2, 3), values(3, 3, seed=1)

        def block(z: Tensor) -> Tensor:
            refined: Tensor = adapter(
                z * 2, lambda y: torch.tanh(y @ weight).square().sum(1)
            ).latent
            return refined.sin()

        return torch.autograd.grad(
            around(block, latent).sum(), [latent, weight], allow_unused=True, materialize_grads=True
        )

    def checkpointed(block: Any, z: Tensor) -> Any:
        return checkpoint(block, z, use_reentrant=False, determinism_check=determinism)

    first, second = gradients(checkpointed), gradients(checkpointed)
    expected = gradients(lambda block, z: block(z))
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_a_parameter_as_step_size_is_not_frozen() -> None:
    """It would be read once; a plain number, also in a tensor, is fine."""
    for size in (nn.Parameter(torch.tensor(0.5)), torch.ones(3), values(1)):
        with pytest.raises(SettingError, match=r"step_size.*LearnedStepSize\(initial\)"):
            LatentAdapter(size)  # type: ignore[arg-type]
    assert LatentAdapter(torch.tensor(0.5)).step_size(0, 0) == 0.5  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="value of FixedStepSize"):
        FixedStepSize(nn.Parameter(torch.tensor(0.1)))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="damping of Implicit"):
        Implicit(damping=nn.Parameter(torch.tensor(0.5)))  # type: ignore[arg-type]


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_a_maximum_is_no_optimum_in_silence(curvature: float) -> None:
    """It names the curvature and the damping, with which the gradient is right."""
    centre = torch.tensor([[3.0], [1.0]], dtype=torch.float64, requires_grad=True)
    bent = torch.tensor([1.0, curvature], dtype=torch.float64)

    def refine(policy: Implicit) -> Tensor:
        loss = lambda z: 0.5 * bent * (z - centre).square().sum(1) + 0 * z.pow(4).sum(1)  # noqa: E731
        refined: Tensor = LatentAdapter(0.1, differentiation=policy)(centre.detach(), loss).latent
        return refined

    refined = refine(Implicit())
    with pytest.warns(CurvatureWarning, match=rf"curvature of {curvature:.3g} in 1 of 2 .*damping"):
        (gradient,) = torch.autograd.grad(refined.sum(), centre)
    assert gradient[0] == 1.0
    (damped,) = torch.autograd.grad(refine(Implicit(damping=3.0)).sum(), centre)
    torch.testing.assert_close(damped[:, 0], bent / (bent + 3.0))


def test_a_series_that_grows_is_named() -> None:
    """Too large a scale, or negative curvature."""
    for curvature, scale in ((1.0, 2.5), (-1.0, 0.5)):
        centre = values(2, 1)
        policy = Implicit("neumann", scale=scale)
        loss = lambda z, c=centre, k=curvature: 0.5 * k * (z - c).square().sum(1)  # noqa: E731
        refined = LatentAdapter(0.1, differentiation=policy)(centre.detach(), loss).latent
        with pytest.warns(ConvergenceWarning, match=r"series to shrink.*2 / scale"):
            refined.sum().backward()


def test_a_linear_loss_has_no_optimum() -> None:
    weight = values(3)
    adapter = LatentAdapter(0.1, differentiation=Implicit())
    refined = adapter(values(2, 3, seed=1), lambda z: (z * weight).sum(1)).latent
    with pytest.raises(CurvatureError, match="linear"):
        refined.sum().backward()


# dynamo looks at the `.grad` of every argument.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference(), Implicit()], ids=repr)
def test_the_refusal_under_a_compiler_says_what_works(policy: GradientPolicy) -> None:
    """And it does: the adapter alone runs eagerly, the rest is compiled."""
    adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()

    def program(refine: Any) -> Any:
        def outer(x: Tensor) -> Tensor:
            z = torch.tanh(encoder(x))
            loss = lambda y: decoder(y).square().sum(1) + y.square().sum(1)  # noqa: E731
            return refine(z, loss).latent.sin().sum() + z.sum()

        return outer

    x = values(4, 3).detach()
    with pytest.raises(Exception, match=r"Unrolled\(\).*torch\.compiler\.disable\(adapter\)"):
        torch.compile(program(adapter), fullgraph=True, backend="aot_eager")(x)
    inputs = [*encoder.parameters(), *decoder.parameters()]
    eager = torch.autograd.grad(program(adapter)(x), inputs)
    mixed = torch.compile(program(torch.compiler.disable(adapter)), backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(mixed(x), inputs), eager)
    with pytest.raises(MetalearnError, match=r"torch\.func"):
        torch.func.grad(program(adapter))(x)
