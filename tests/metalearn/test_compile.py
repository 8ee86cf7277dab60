"""The adapter inside ``torch.compile(fullgraph=True)``.

Most tests stop before code generation (backend ``aot_eager``): what is traced, and the gradient
derived from it, are the adapter's business; the code is torch's. One test generates code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed, Unsupported
from torch._dynamo.utils import counters

from metalearn import (
    Checkpointed,
    ClipGradient,
    DisconnectedLossError,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    MetalearnError,
    Momentum,
    StepSize,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
    plain_attention,
)

Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled by one test serves another."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float32 normal tensor that requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).requires_grad_()


def program(adapter: LatentAdapter) -> Loss:
    """A whole meta-objective: adapt, then an outer loss; also the inner losses."""
    target = random(2, 2, seed=3).detach()

    def loss(latent: Tensor, weight: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        def support(z: Tensor) -> Tensor:
            return (torch.tanh(z @ weight) @ head - target).square().sum(1)

        result = adapter(latent, support, final_loss=True)
        return result.latent.sin().sum(), result.losses

    return loss


def assert_compiled_equals_eager(adapter: LatentAdapter, loss: Loss, backend: str) -> None:
    """Loss, inner losses and every gradient, to 1e-5."""
    inputs = [random(2, 3), random(3, 4, seed=1), random(4, 2, seed=2)]
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        value, losses = function(*inputs)
        gradients = torch.autograd.grad(
            value, [*inputs, *adapter.parameters()], allow_unused=True, materialize_grads=True
        )
        results.append((value, losses, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "size", "update"),
    [
        (Unrolled(), LearnedStepSize(0.2, channels=3, steps=2), Momentum(0.5, nesterov=True)),
        (Truncated(1), LearnedStepSize(0.2), ClipGradient(0.5)),
        (FirstOrder(), 0.2, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_compiled_gradients_equal_eager_ones(
    policy: GradientPolicy, size: float | StepSize, update: UpdateRule | None
) -> None:
    """In one graph, without a break."""
    adapter = LatentAdapter(size, steps=2, differentiation=policy, update=update)
    assert_compiled_equals_eager(adapter, program(adapter), "aot_eager")


def test_attention_in_full_precision_compiles() -> None:
    """What a transformer decoder needs, with the switch of autocast inside the graph."""
    adapter = LatentAdapter(0.2, full_precision=True)

    def loss(latent: Tensor, weight: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        def support(z: Tensor) -> Tensor:
            hidden = z.unsqueeze(2) * weight
            return (plain_attention(hidden, hidden, hidden) @ head).square().sum((1, 2))

        result = adapter(latent, support)
        return result.latent.sin().sum(), result.losses

    assert_compiled_equals_eager(adapter, loss, "aot_eager")


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_generated_code_equals_eager() -> None:
    """The default backend, on the smallest program and without an outer gradient.

    A C++ compiler takes its time over each kernel; the outer gradient was traced above.
    """
    adapter = LatentAdapter(LearnedStepSize(0.2, channels=3))
    weight = random(3, seed=1)

    def refine(latent: Tensor) -> Tensor:
        refined: Tensor = adapter(latent, lambda z: (z * weight).sin().sum(1)).latent
        return refined

    compiled = torch.compile(refine, fullgraph=True)
    latent = random(2, 3)
    try:
        with torch.no_grad():
            torch.testing.assert_close(compiled(latent), refine(latent))
    except BackendCompilerFailed as error:
        cause = type(error.inner_exception).__name__
        if cause not in ("InvalidCxxCompiler", "CppCompileError", "FileNotFoundError"):
            raise
        pytest.skip(f"torch.compile finds no working C++ compiler here: {cause}")


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference(), Implicit()], ids=repr)
def test_a_policy_with_its_own_backward_is_refused_with_alternatives(
    policy: GradientPolicy,
) -> None:
    """torch wraps the error in its own; the text arrives."""
    adapter = LatentAdapter(0.2, differentiation=policy)
    compiled = torch.compile(program(adapter), fullgraph=True, backend="aot_eager")
    expected = rf"{type(policy).__name__}.*use Unrolled\(\), Truncated\(\) or FirstOrder\(\)"
    with pytest.raises((MetalearnError, Unsupported), match=expected):
        compiled(random(2, 3), random(3, 4), random(4, 2))


def test_an_optimiser_of_torch_is_refused_with_alternatives() -> None:
    """It is no traceable rule."""
    adapter = LatentAdapter(0.2, update=TorchOptimiser(torch.optim.SGD))
    compiled = torch.compile(program(adapter), fullgraph=True, backend="aot_eager")
    with pytest.raises((MetalearnError, Unsupported), match="use GradientDescent or Momentum"):
        compiled(random(2, 3), random(3, 4), random(4, 2))


@pytest.mark.parametrize(
    "loss",
    [lambda z, weight: z.detach().cos().sum(1), lambda z, weight: weight.cos().sum(1)],
    ids=["detached", "of a parameter only"],
)
def test_a_disconnected_loss_is_refused_while_it_is_traced(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """`torch.func.grad` alone would return zeros, and the compiled function the latent itself."""
    adapter = LatentAdapter(0.2)

    def objective(latent: Tensor, weight: Tensor) -> Tensor:
        return adapter(latent, lambda z: loss(z, weight)).latent.sum()

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    with pytest.raises((DisconnectedLossError, Unsupported), match="depends on the latent"):
        compiled(random(2, 3), random(2, 3, seed=1))


def test_finite_differences_accept_a_compiled_decoder() -> None:
    """The one policy with second-order terms that does: compiled code has one derivative only.

    It finds parameters and captured results inside the compiled function.
    """
    weight, head = random(3, 4, seed=1), random(4, 2, seed=2)

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight) @ head

    def gradients(policy: GradientPolicy, decode: Callable[[Tensor], Tensor]) -> Any:
        latent = random(2, 3)
        refined = LatentAdapter(0.1, steps=2, differentiation=policy)(
            latent, lambda z: decode(z).square().sum(1) + z.square().sum(1)
        ).latent
        return torch.autograd.grad(refined.sin().sum(), [latent, weight, head])

    compiled = torch.compile(decode, backend="aot_eager")
    received = gradients(FiniteDifference(), compiled)
    torch.testing.assert_close(received, gradients(Unrolled(), decode), rtol=1e-3, atol=1e-3)


def test_a_compiled_decoder_is_compiled_once_for_all_calls() -> None:
    """A trace per kind of pass: recorded in the forward, plain elsewhere; never one per call."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    adapter = LatentAdapter(0.1, steps=2, differentiation=FiniteDifference())
    traces = []
    for call in range(4):
        target = random(2, 2, seed=call).detach()
        refined = adapter(random(2, 3), lambda z: (compiled(z) - target).square().sum(1)).latent  # noqa: B023
        (refined.sum() + compiled(random(2, 3)).sum()).backward()
        traces.append(counters["stats"]["unique_graphs"])
    assert traces == [2, 2, 2, 2]


# dynamo itself looks at the `.grad` of every argument.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("shared", [False, True])
def test_a_compiled_decoder_that_is_given_an_earlier_result(shared: bool) -> None:
    """Its gradient counts once; where it would count twice, the call is refused with the remedy."""

    def gradients(
        policy: GradientPolicy, decode: Callable[..., Tensor], hand: Callable[[Tensor], Tensor]
    ) -> Any:
        weight, other = random(3, 3, seed=1), random(3, 3, seed=2)
        memory = torch.tanh(random(2, 3, seed=3).detach() @ weight)
        used = weight if shared else other
        refined = LatentAdapter(0.1, steps=2, differentiation=policy)(
            memory.exp(), lambda z: decode(z, hand(memory), used).square().sum(1)
        ).latent
        return torch.autograd.grad(
            refined.sin().sum() + memory.sum(), [weight, other], allow_unused=True
        )

    def decode(z: Tensor, memory: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh((z * memory) @ weight)

    compiled = torch.compile(decode, backend="aot_eager")
    expected = gradients(Unrolled(), decode, lambda memory: memory)
    if shared:
        with pytest.raises(MetalearnError, match=r"count their gradient twice; .*view_as"):
            gradients(FiniteDifference(), compiled, lambda memory: memory)
        received = gradients(FiniteDifference(), compiled, lambda memory: memory.view_as(memory))
    else:
        received = gradients(FiniteDifference(), compiled, lambda memory: memory)
    torch.testing.assert_close(received, expected, rtol=1e-3, atol=1e-3)
