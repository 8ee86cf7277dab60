"""`LatentAdapter`: its values, its derivatives, what it promises, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import (
    DisconnectedLossError,
    FirstOrder,
    GradientDescent,
    GradientPolicy,
    LatentAdapter,
    LatentError,
    LearnedStepSize,
    NonFiniteLossError,
    SecondDerivativeError,
    SupportLossShapeError,
    Unrolled,
)

POLICIES = [Unrolled(), FirstOrder()]
Theta = tuple[Tensor, ...]


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """A seeded float64 normal tensor; different seeds for different roles in a test."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


def random_theta(*, requires_grad: bool = True) -> Theta:
    """Weights of a decoder from 3 latent channels over 4 hidden ones to 2 outputs."""
    shapes = [(3, 4), (4,), (4, 2)]
    return tuple(random(*s, seed=10 + i, requires_grad=requires_grad) for i, s in enumerate(shapes))


def decoder_loss(theta: Theta, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Squared error of a small decoder whose second derivatives are dense and not constant."""
    weight_in, bias, weight_out = theta

    def loss(latent: Tensor) -> Tensor:
        predicted = torch.tanh(latent @ weight_in + bias) @ weight_out
        return (predicted - target).square().sum(dim=1)

    return loss


class TinyDecoder(nn.Module):
    """A module with a buffer that changes in training mode would betray a mutation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4, dtype=torch.float64)
        self.outer = nn.Linear(4, 2, dtype=torch.float64)
        self.register_buffer("scale", torch.ones(2, dtype=torch.float64))

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.inner(latent))) * self.scale
        return out


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_first_and_second_derivatives_of_unrolled_match_finite_differences(steps: int) -> None:
    """The map (latent, theta) -> refined latent, and its gradient, are what autograd says."""
    latent, target = random(2, 3, requires_grad=True), random(2, 2, seed=1)
    adapter = LatentAdapter(0.3, steps=steps)

    def refine(latent: Tensor, *theta: Tensor) -> Tensor:
        return adapter(latent, decoder_loss(theta, target)).latent

    inputs = (latent, *random_theta())
    assert torch.autograd.gradcheck(refine, inputs)
    assert torch.autograd.gradgradcheck(refine, inputs)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_quadratic_has_the_closed_form_value_and_jacobians(steps: int) -> None:
    """For 0.5 (z-c)'A(z-c) the loop is affine: z_n = c + M^n (z-c) with M = I - alpha S.

    S is the symmetric part of A. The derivative in A along V is
    -alpha sum_k M^k sym(V) M^(n-1-k) (z-c).
    """
    alpha = 0.2
    latent, centre, matrix = random(1, 3), random(1, 3, seed=1), random(3, 3, seed=2)

    def refine(latent: Tensor, centre: Tensor, matrix: Tensor) -> Tensor:
        def loss(z: Tensor) -> Tensor:
            return 0.5 * torch.einsum("bi,ij,bj->b", z - centre, matrix, z - centre)

        return LatentAdapter(alpha, steps=steps)(latent, loss).latent

    contraction = torch.eye(3, dtype=torch.float64) - alpha * (matrix + matrix.T) / 2
    power = [torch.linalg.matrix_power(contraction, k) for k in range(steps + 1)]
    offset = (latent - centre)[0]
    torch.testing.assert_close(refine(latent, centre, matrix)[0], centre[0] + power[steps] @ offset)

    in_latent, in_centre, in_matrix = torch.autograd.functional.jacobian(
        refine, (latent, centre, matrix)
    )
    torch.testing.assert_close(in_latent[0, :, 0], power[steps])
    torch.testing.assert_close(in_centre[0, :, 0], power[0] - power[steps])
    direction = random(3, 3, seed=3)
    symmetric = (direction + direction.T) / 2
    expected = -alpha * sum(
        power[k] @ symmetric @ power[steps - 1 - k] @ offset for k in range(steps)
    )
    torch.testing.assert_close(torch.einsum("iab,ab->i", in_matrix[0], direction), expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_outer_gradient_equals_torch_func_grad_of_the_written_out_program(steps: int) -> None:
    """An independent reference: the same mathematics without any of our code."""
    alpha, target, query_target = 0.3, random(4, 2, seed=1), random(4, 2, seed=2)
    latent, theta = random(4, 3, requires_grad=True), random_theta()

    def program(latent: Tensor, theta: Theta) -> Tensor:
        for _ in range(steps):
            inner = torch.func.grad(lambda z: decoder_loss(theta, target)(z).sum())
            latent = latent - alpha * inner(latent)
        return decoder_loss(theta, query_target)(latent).mean()

    expected_latent, expected_theta = torch.func.grad(program, argnums=(0, 1))(latent, theta)
    refined = LatentAdapter(alpha, steps=steps)(latent, decoder_loss(theta, target)).latent
    decoder_loss(theta, query_target)(refined).mean().backward()
    torch.testing.assert_close(latent.grad, expected_latent)
    for parameter, expected in zip(theta, expected_theta, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_outer_gradient_equals_that_of_higher(steps: int) -> None:
    """`higher` unrolls torch.optim.SGD over a module that holds the latent as its parameter."""
    higher = pytest.importorskip("higher")
    alpha, target, query_target = 0.3, random(4, 2, seed=1), random(4, 2, seed=2)
    latent, theta = random(4, 3, requires_grad=True), random_theta()
    support = decoder_loss(theta, target)
    query = decoder_loss(theta, query_target)

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(latent.detach().clone())

    held = Held()
    with higher.innerloop_ctx(held, torch.optim.SGD(held.parameters(), lr=alpha)) as (fast, sgd):
        for _ in range(steps):
            sgd.step(support(fast.latent).sum())
        expected_refined = fast.latent
        start = next(iter(fast.parameters(time=0)))
        expected = torch.autograd.grad(query(expected_refined).mean(), (start, *theta))

    refined = LatentAdapter(alpha, steps=steps)(latent, support).latent
    torch.testing.assert_close(refined, expected_refined)
    received = torch.autograd.grad(query(refined).mean(), (latent, *theta))
    for ours, theirs in zip(received, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_torch_func_grad_goes_through_the_adapter() -> None:
    """A functional caller gets the gradient that backward() gives."""
    target, theta = random(2, 2, seed=1), random_theta(requires_grad=False)
    adapter = LatentAdapter(0.3, steps=2)

    def outer(latent: Tensor) -> Tensor:
        return adapter(latent, decoder_loss(theta, target)).latent.square().sum()

    latent = random(2, 3, requires_grad=True)
    outer(latent).backward()
    torch.testing.assert_close(torch.func.grad(outer)(latent.detach()), latent.grad)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_has_the_values_of_unrolled_and_an_identity_jacobian(steps: int) -> None:
    """dz'/dz is the identity to the last bit, and z' does not depend on theta at all."""
    target, theta = random(2, 2, seed=1), random_theta()
    loss = decoder_loss(theta, target)

    def jacobian(policy: GradientPolicy) -> tuple[Tensor, Tensor]:
        latent = random(2, 3, requires_grad=True)
        refined = LatentAdapter(0.3, steps=steps, differentiation=policy)(latent, loss).latent
        rows = [
            torch.autograd.grad(value, latent, retain_graph=True)[0].flatten()
            for value in refined.flatten()
        ]
        return refined, torch.stack(rows)

    exact, exact_jacobian = jacobian(Unrolled())
    first, first_jacobian = jacobian(FirstOrder())
    assert torch.equal(first, exact)
    assert torch.equal(first_jacobian, torch.eye(6, dtype=torch.float64))
    assert (exact_jacobian - first_jacobian).abs().max() > 0.1
    in_theta = torch.autograd.grad(first.sum(), theta, allow_unused=True)
    assert in_theta == (None, None, None)
    assert all(g.abs().max() > 1e-3 for g in torch.autograd.grad(exact.sum(), theta))


def test_first_order_leaves_the_graph_of_a_captured_tensor_alive() -> None:
    """A decoder may attend to an encoder's output: the inner pass must not free its graph."""
    weight = random(3, 3, requires_grad=True)
    memory = (random(2, 3, seed=1) @ weight).tanh()
    refined = LatentAdapter(0.3, steps=2, differentiation=FirstOrder())(
        random(2, 3, seed=2), lambda z: (z - memory).square().sum(1)
    ).latent
    (refined * memory).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("policy", "slope"), [(Unrolled(), 1 - 0.5 + 0.5 * 3.0), (FirstOrder(), 1)]
)
def test_a_closure_that_captures_the_latent_is_differentiated_in_its_argument(
    policy: GradientPolicy, slope: float
) -> None:
    """L(y) = 0.5 |y - 3 z|^2 at y = z: the inner gradient is (y - 3 z), not (1 - 3)^2 z."""
    latent = random(2, 3, requires_grad=True)
    adapter = LatentAdapter(0.5, differentiation=policy)
    refined = adapter(latent, lambda y: 0.5 * (y - 3.0 * latent).square().sum(1)).latent
    torch.testing.assert_close(refined, latent - 0.5 * (latent - 3.0 * latent))
    (gradient,) = torch.autograd.grad(refined.sum(), latent)
    torch.testing.assert_close(gradient, torch.full_like(gradient, slope))


@pytest.mark.parametrize(("policy", "slope"), [(Unrolled(), 2.5), (FirstOrder(), 1)], ids=repr)
@pytest.mark.parametrize("first", ["moves", "rests"])
def test_a_captured_latent_stays_apart_in_later_steps(
    policy: GradientPolicy, slope: float, first: str
) -> None:
    """y1 = 2 z, y2 = 2.5 z; a rule may also return the caller's own tensor from its first steps."""

    class Patient(GradientDescent):
        """Rests for a step."""

        def initial_state(self, leaves: Any) -> Any:
            return first == "moves"

        def __call__(self, leaves: Any, gradients: Any, sizes: Any, state: Any) -> Any:
            moved = super().__call__(leaves, gradients, sizes, None)[0] if state else [*leaves]
            return moved, True

    latent = random(2, 3, requires_grad=True)
    memory = 3.0 * latent
    steps = 2 if first == "moves" else 3
    adapter = LatentAdapter(0.5, steps=steps, differentiation=policy, update=Patient())
    refined = adapter(latent, lambda y: 0.5 * (y - memory).square().sum(1)).latent
    torch.testing.assert_close(refined, 2.5 * latent)
    with torch.no_grad():
        torch.testing.assert_close(
            adapter(latent, lambda y: 0.5 * (y - memory).square().sum(1)).latent, refined
        )
    (gradient,) = torch.autograd.grad(refined.sum(), latent)
    torch.testing.assert_close(gradient, torch.full_like(gradient, slope))


# --- tasks never mix ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=20, deadline=None)
@given(tasks=st.integers(1, 5), steps=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_a_batch_refines_each_task_as_if_it_were_alone(
    policy: GradientPolicy, tasks: int, steps: int, seed: int
) -> None:
    """The gradient is that of a sum over tasks: neither batch size nor neighbours matter."""
    latent, target = random(tasks, 3, seed=seed), random(tasks, 2, seed=seed + 1)
    theta = random_theta()
    adapter = LatentAdapter(0.3, steps=steps, differentiation=policy)
    batch = adapter(latent, decoder_loss(theta, target))
    for b in range(tasks):
        alone = adapter(latent[b : b + 1], decoder_loss(theta, target[b : b + 1]))
        torch.testing.assert_close(batch.latent[b], alone.latent[0])
        torch.testing.assert_close(batch.losses[:, b], alone.losses[:, 0])

    twice = adapter(torch.cat([latent] * 2), decoder_loss(theta, torch.cat([target] * 2)))
    torch.testing.assert_close(twice.latent, torch.cat([batch.latent] * 2))
    torch.testing.assert_close(twice.losses, torch.cat([batch.losses] * 2, dim=1))


def test_the_jacobian_across_tasks_is_exactly_zero() -> None:
    """And the blocks on the diagonal are not."""
    target, theta = random(3, 2, seed=1), random_theta()

    def refine(latent: Tensor) -> Tensor:
        return LatentAdapter(0.3, steps=3)(latent, decoder_loss(theta, target)).latent

    jacobian = torch.autograd.functional.jacobian(refine, random(3, 3))
    for received in range(3):
        for given_ in range(3):
            block = jacobian[received, :, given_]
            assert (
                (block != 0).all()
                if received == given_
                else torch.equal(block, torch.zeros_like(block))
            )


def test_an_empty_batch_stays_empty() -> None:
    """The last shard of a data set can be empty; nothing is divided by its size."""
    refined = LatentAdapter(0.3, steps=2)(random(0, 3), lambda z: z.square().sum(1))
    assert refined.latent.shape == (0, 3)
    assert refined.losses.shape == (2, 0)


# --- pytrees --------------------------------------------------------------------------------------


class Code(NamedTuple):
    """A named latent of two parts."""

    shape: Tensor
    colour: Tensor


STRUCTURES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (
        lambda z: {"a": z[:, :1], "b": z[:, 1:]},
        lambda p: torch.cat([p["a"], p["b"]], dim=1),
    ),
    "nested tuple": (
        lambda z: (z[:, :1], (z[:, 1], [z[:, 2:].unsqueeze(-1)])),
        lambda p: torch.cat([p[0], p[1][0].unsqueeze(1), p[1][1][0].squeeze(-1)], dim=1),
    ),
    "named tuple": (
        lambda z: Code(shape=z[:, :2], colour=z[:, 2:]),
        lambda p: torch.cat([p.shape, p.colour], dim=1),
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_pytree_latent_equals_the_concatenated_tensor(policy: GradientPolicy, name: str) -> None:
    """Same refined values, same outer gradient, and the structure comes back."""
    split, join = STRUCTURES[name]
    target, theta = random(2, 2, seed=1), random_theta()
    loss = decoder_loss(theta, target)
    adapter = LatentAdapter(0.3, steps=3, differentiation=policy)
    latent = random(2, 3, requires_grad=True)

    whole = adapter(latent, loss)
    parts = adapter(split(latent), lambda p: loss(join(p)))
    assert type(parts.latent) is type(split(latent))
    torch.testing.assert_close(join(parts.latent), whole.latent)
    torch.testing.assert_close(parts.losses, whole.losses)
    (expected,) = torch.autograd.grad(whole.latent.square().sum(), latent)
    (received,) = torch.autograd.grad(join(parts.latent).square().sum(), latent)
    torch.testing.assert_close(received, expected)


def test_a_leaf_that_the_loss_does_not_use_keeps_its_value() -> None:
    """Its gradient is zero; that is no error as long as another leaf is used."""
    latent = {"used": random(2, 3), "spare": random(2, 4, seed=1)}
    refined = LatentAdapter(0.5)(latent, lambda p: 0.5 * p["used"].square().sum(1)).latent
    assert torch.equal(refined["spare"], latent["spare"])
    torch.testing.assert_close(refined["used"], 0.5 * latent["used"])


# --- promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_callers_module_and_gradients_are_left_alone(policy: GradientPolicy) -> None:
    """A pass and an outer gradient change no weight, buffer, flag or `.grad`."""
    torch.manual_seed(0)
    decoder = TinyDecoder()
    decoder.inner.bias.requires_grad_(False)
    decoder.inner.weight.grad = torch.full((4, 3), 7.0, dtype=torch.float64)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    flags = {name: p.requires_grad for name, p in decoder.named_parameters()}
    latent = random(2, 3, requires_grad=True)
    original = latent.detach().clone()

    adapter = LatentAdapter(0.3, steps=2, differentiation=policy)
    refined = adapter(latent, lambda z: decoder(z).square().sum(1), final_loss=True).latent
    torch.autograd.grad(refined.sum(), latent)

    assert decoder.training
    assert decoder.state_dict().keys() == before.keys()
    assert all(torch.equal(decoder.state_dict()[name], value) for name, value in before.items())
    assert {name: p.requires_grad for name, p in decoder.named_parameters()} == flags
    assert torch.equal(decoder.inner.weight.grad, torch.full((4, 3), 7.0, dtype=torch.float64))
    others = [p for p in decoder.parameters() if p is not decoder.inner.weight]
    assert [p.grad for p in others] == [None] * 3
    assert latent.grad is None
    assert torch.equal(latent, original)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_restored(policy: GradientPolicy, enabled: bool) -> None:
    """After success and after an error inside the support loss."""

    def broken(z: Tensor) -> Tensor:
        raise KeyError("inside the loss")

    adapter = LatentAdapter(0.3, differentiation=policy)
    with torch.set_grad_enabled(enabled):
        adapter(random(2, 3), lambda z: z.square().sum(1), final_loss=True)
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(KeyError):
            adapter(random(2, 3), broken)
        assert torch.is_grad_enabled() is enabled


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_no_grad_gives_the_same_value_without_a_graph(policy: GradientPolicy) -> None:
    """Evaluation uses the same inner steps, and holds nothing for an outer gradient."""
    loss = decoder_loss(random_theta(), random(2, 2, seed=1))
    latent = random(2, 3, requires_grad=True)
    adapter = LatentAdapter(
        LearnedStepSize(0.3, channels=3).double(), steps=3, differentiation=policy
    )
    with_graph = adapter(latent, loss, final_loss=True)
    with torch.no_grad():
        without = adapter(latent, loss, final_loss=True)
    assert with_graph.latent.requires_grad
    assert not without.latent.requires_grad
    assert without.latent.grad_fn is None
    assert torch.equal(without.latent, with_graph.latent)
    assert torch.equal(without.losses, with_graph.losses)


@pytest.mark.parametrize(
    ("policy", "enabled", "recorded"),
    [(Unrolled(), True, True), (Unrolled(), False, False), (FirstOrder(), True, False)],
)
def test_a_second_order_graph_is_recorded_only_where_it_is_used(
    policy: GradientPolicy, enabled: bool, recorded: bool
) -> None:
    """Grad mode is on inside the inner backward pass exactly when its graph is kept."""
    modes = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return gradient

    latent = random(2, 3, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        LatentAdapter(0.3, steps=2, differentiation=policy)(
            latent, lambda z: Spy.apply(z).square().sum(1)
        )
    assert modes == [recorded, recorded]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_losses_are_those_on_the_way(policy: GradientPolicy) -> None:
    """Row t before step t, one more row after the last step on request; all detached."""
    loss = decoder_loss(random_theta(), random(2, 2, seed=1))
    latent = random(2, 3, requires_grad=True)
    adapter = LatentAdapter(0.05, steps=3, differentiation=policy)
    path = [adapter(latent, loss, steps=n).latent for n in range(1, 4)]
    expected = torch.stack([loss(z) for z in [latent, *path]]).detach()

    short = adapter(latent, loss)
    full = adapter(latent, loss, final_loss=True)
    assert short.losses.shape == (3, 2)
    torch.testing.assert_close(short.losses, expected[:3])
    torch.testing.assert_close(full.losses, expected)
    assert not full.losses.requires_grad
    assert (full.losses.diff(dim=0) < 0).all(), "small steps go downhill"


def test_steps_of_a_call_override_those_of_the_adapter() -> None:
    """5 steps on 0.5 z^2 with size 0.1 shrink z by 0.9^5; the setting itself is untouched."""
    adapter = LatentAdapter(0.1, steps=1)
    latent = random(2, 3)
    refined = adapter(latent, lambda z: 0.5 * z.square().sum(1), steps=5)
    torch.testing.assert_close(refined.latent, 0.9**5 * latent)
    assert refined.losses.shape == (5, 2)
    assert adapter.steps == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_learned_step_size_in_float32_keeps_the_dtype_of_the_latent(dtype: torch.dtype) -> None:
    """Promotion would double the memory of the tokens; its own gradient stays in float32."""
    size = LearnedStepSize(0.5, channels=3)
    latent = random(2, 3).to(dtype).requires_grad_()
    refined = LatentAdapter(size, steps=2)(latent, lambda z: 0.5 * z.square().sum(1)).latent
    assert refined.dtype == dtype
    torch.testing.assert_close(refined.float(), 0.25 * latent.float(), rtol=2e-2, atol=1e-3)
    refined.float().sum().backward()
    (log_value,) = size.parameters()
    assert log_value.grad is not None
    assert log_value.grad.dtype == torch.float32
    # d/d beta of (1 - alpha)^2 z summed over tasks, alpha = exp(beta) = 0.5.
    expected = -2 * 0.5 * 0.5 * latent.detach().float().sum(0, keepdim=True)
    torch.testing.assert_close(log_value.grad, expected, rtol=2e-2, atol=1e-2)


def test_autocast_inside_the_support_loss_keeps_the_latent_in_float32() -> None:
    """Mixed precision is the loss's business; the steps stay in the latent's own precision."""
    torch.manual_seed(0)
    decoder = nn.Linear(3, 2)
    latent = random(2, 3).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = LatentAdapter(0.1, steps=2)(
            latent, lambda z: decoder(z).float().square().sum(1)
        ).latent
    exact = LatentAdapter(0.1, steps=2)(latent, lambda z: decoder(z).square().sum(1)).latent
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, exact, rtol=3e-2, atol=3e-2)


def test_the_result_prints_its_first_and_last_mean_loss() -> None:
    """0.5 z^2 with size 0.5 from z = 2: the loss goes from 2 to 0.5."""
    latent = torch.full((3, 1), 2.0)
    refined = LatentAdapter(0.5)(latent, lambda z: 0.5 * z.square().sum(1), final_loss=True)
    assert repr(refined) == ("Adaptation(tasks=3, mean support loss 2 -> 0.5 over 2 evaluations)")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (lambda z: z.square(), r"got \(2, 3\)"),
        (lambda z: z.square().sum(), r"got \(\)"),
        (lambda z: z.square().sum(0), r"got \(3,\)"),
        (lambda z: z.square().sum(1, keepdim=True), r"got \(2, 1\)"),
        (lambda z: 1.0, "got float"),
    ],
    ids=["elements", "scalar", "over tasks", "kept axis", "number"],
)
def test_a_loss_that_is_not_one_per_task_is_refused(
    loss: Callable[[Tensor], Any], received: str
) -> None:
    """A scalar or broadcastable loss would silently mix tasks."""
    with pytest.raises(SupportLossShapeError, match=r"expected .* shape \(2,\), " + received):
        LatentAdapter(0.5)(random(2, 3), loss)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize(
    "loss",
    [
        lambda z: torch.ones(2, dtype=torch.float64),
        lambda z: z.detach().square().sum(1),
        lambda z: torch.ones(2, dtype=torch.float64, requires_grad=True) * 2,
    ],
    ids=["constant", "detached", "of a parameter only"],
)
def test_a_loss_that_does_not_depend_on_the_latent_is_refused(
    policy: GradientPolicy, loss: Callable[[Tensor], Tensor]
) -> None:
    """Zero gradients would otherwise turn the method off without a word."""
    with pytest.raises(DisconnectedLossError, match=r"expected .* depends on the latent.* got one"):
        LatentAdapter(0.5, differentiation=policy)(random(2, 3), loss)


def test_a_loss_that_is_not_finite_names_the_task() -> None:
    """Task 2 of 4 is the culprit."""
    latent = random(4, 3)
    latent[2, 1] = float("nan")
    with pytest.raises(
        NonFiniteLossError,
        match=r"expected finite .*, got nan before inner step 1 in 1 of 4 tasks \(index 2\)",
    ):
        LatentAdapter(0.5)(latent, lambda z: z.square().sum(1))


def test_a_loss_that_diverges_on_the_way_names_the_step() -> None:
    """log z from z = 1 with size 2 arrives at -1, where step 2 finds NaN; z = 9 stays positive."""
    latent = torch.tensor([[9.0], [1.0]])
    with pytest.raises(
        NonFiniteLossError, match=r"before inner step 2 in 1 of 2 tasks \(index 1\)"
    ):
        LatentAdapter(2.0, steps=2)(latent, lambda z: z.log().sum(1))
    with pytest.raises(
        NonFiniteLossError, match=r"before inner step 2 in 1 of 2 tasks \(index 1\)"
    ):
        LatentAdapter(2.0)(latent, lambda z: z.log().sum(1), final_loss=True)
    unchecked = LatentAdapter(2.0, steps=2, check_finite=False)(latent, lambda z: z.log().sum(1))
    assert unchecked.losses[1].isnan().tolist() == [False, True]


def test_many_tasks_that_are_not_finite_are_listed_briefly() -> None:
    """Five indices are enough to look at."""
    with pytest.raises(
        NonFiniteLossError, match=r"got inf .*7 of 7 .*\(index 0, 1, 2, 3, 4, ...\)"
    ):
        LatentAdapter(0.5)(torch.full((7, 1), float("inf")), lambda z: z.square().sum(1))


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (
            torch.ones(2, 3, dtype=torch.long),
            r"expected floating-point .* got torch.int64 at leaf 0",
        ),
        ({}, "expected a latent with at least one tensor, got an empty pytree"),
        ((torch.ones(2, 3), torch.ones(4, 3)), r"share the first .* \[\(2, 3\), \(4, 3\)\]"),
        ([torch.ones(2), torch.tensor(1.0)], r"expected the task axis first.* scalar at leaf 1"),
        ({"z": torch.ones(2), "name": "a"}, r"expected every leaf .* tensor, got str at leaf 1"),
    ],
    ids=["integers", "empty", "mismatched tasks", "no task axis", "no tensor"],
)
def test_what_is_not_a_latent_is_refused(latent: Any, message: str) -> None:
    """Each message says what came and where."""
    with pytest.raises(LatentError, match=message):
        LatentAdapter(0.5)(latent, lambda z: torch.ones(2))


def test_inference_mode_is_refused() -> None:
    """Both the mode and a tensor that was made in it."""
    adapter = LatentAdapter(0.5)
    with torch.inference_mode():
        made_inside = torch.ones(2, 3)
        with pytest.raises(LatentError, match=r"got torch.inference_mode\(\).*no_grad"):
            adapter(made_inside, lambda z: z.square().sum(1))
    with pytest.raises(LatentError, match=r"got torch.inference_mode\(\).*no_grad"):
        adapter(made_inside, lambda z: z.square().sum(1))


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps: int) -> None:
    """Without a step there is nothing to refine."""
    with pytest.raises(ValueError, match=f"expected at least 1 inner step, got steps={steps}"):
        LatentAdapter(0.5, steps=steps)


# --- fused attention ------------------------------------------------------------------------------


def attention(latent: Tensor) -> Tensor:
    """Self-attention over (B, T, D) that runs in torch's fused kernel (it needs a heads axis)."""
    heads = latent.unsqueeze(1)
    return F.scaled_dot_product_attention(heads, heads, heads).squeeze(1)


def attention_loss(latent: Tensor) -> Tensor:
    """A support loss whose backward has no derivative of its own."""
    return attention(latent).square().sum(dim=(1, 2))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_unrolled_refuses_fused_attention_where_it_is_called(requires_grad: bool) -> None:
    """Not in the outer backward(), which would be far from the cause."""
    latent = random(2, 4, 8, requires_grad=requires_grad)
    with pytest.raises(SecondDerivativeError, match=r"expected .*twice, got .*FirstOrder\(\)"):
        LatentAdapter(0.5)(latent, attention_loss)


def test_first_order_and_no_grad_accept_fused_attention() -> None:
    """Neither needs the second derivative, and both arrive at the values of plain attention."""
    latent = random(2, 4, 8, requires_grad=True)

    def plain_loss(z: Tensor) -> Tensor:
        return ((z @ z.mT / 8**0.5).softmax(-1) @ z).square().sum(dim=(1, 2))

    expected = LatentAdapter(0.1)(latent, plain_loss).latent
    first = LatentAdapter(0.1, differentiation=FirstOrder())(latent, attention_loss).latent
    torch.testing.assert_close(first, expected)
    first.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(LatentAdapter(0.1)(latent, attention_loss).latent, expected)


def test_fused_attention_in_the_encoder_is_accepted() -> None:
    """The encoder is differentiated once only, so `Unrolled` must not refuse its kernel."""
    tokens = random(2, 4, 8, requires_grad=True)
    refined = LatentAdapter(0.1)(attention(tokens), lambda z: z.pow(4).sum(dim=(1, 2))).latent
    refined.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
