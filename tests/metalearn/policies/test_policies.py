"""Gradient policies against programs written out by hand, and what every policy promises."""

from __future__ import annotations

import functools
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from metalearn import (
    Checkpointed,
    ClipGradient,
    FiniteDifference,
    FirstOrder,
    FixedStepSize,
    GradientDescent,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    NormaliseGradient,
    SecondDerivativeError,
    StepSize,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
    plain_attention,
)

# Not every support loss here is convex, and `Implicit` says so.
pytestmark = pytest.mark.filterwarnings("ignore::metalearn.errors.CurvatureWarning")

TASKS, WIDTH = 2, 3
ALL = [
    Unrolled(),
    Checkpointed(),
    Truncated(1),
    FirstOrder(),
    FiniteDifference(),
    Implicit(proximal=0.5, iterations=30, tolerance=1e-12),
]


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """A seeded float64 normal tensor; different seeds for different roles in a test."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_(requires_grad)


THETA = [random(WIDTH, 4, seed=10), random(4, seed=11), random(4, 2, seed=12)]
TARGET = random(TASKS, 2, seed=1)


def support(latent: Tensor, theta: Sequence[Tensor], target: Tensor = TARGET) -> Tensor:
    """Squared error of a small decoder whose second derivatives are dense and not constant."""
    weight_in, bias, weight_out = theta
    return (torch.tanh(latent @ weight_in + bias) @ weight_out - target).square().sum(dim=1)


def outer(latent: Tensor) -> Tensor:
    """An outer loss whose cotangent depends on the latent and differs in every entry."""
    weights = torch.arange(1.0, latent.numel() + 1, dtype=latent.dtype).view_as(latent)
    return (weights * latent.sin()).sum()


# --- the same programs, written out ---------------------------------------------------------------

Move = Callable[[Tensor, Tensor, Any, Any, int], tuple[Tensor, Any]]
"""``(z, g, alpha, state, step) -> (z', state')`` for one tensor; the first state is None."""
Refine = Callable[..., Tensor]
"""``(z, log_value, *theta) -> z'``: a whole inner loop."""


def norm(gradient: Tensor) -> Tensor:
    return gradient.square().sum(dim=1, keepdim=True).sqrt()


def descend(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    return z - alpha * g, None


def heavy_ball(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    m = g if state is None else 0.6 * state + g
    return z - alpha * m, m


def nesterov(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    m = g if state is None else 0.6 * state + g
    return z - alpha * (g + 0.6 * m), m


def clip(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    length = norm(g)
    return z - alpha * torch.where(length > 1.5, 1.5 * g / length, g), None


def normalise(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    return z - alpha * g / (norm(g) + 1e-8), None


def clip_then_heavy_ball(
    z: Tensor, g: Tensor, alpha: Any, state: Any, step: int
) -> tuple[Tensor, Any]:
    length = norm(g)
    return heavy_ball(z, torch.where(length > 1.5, 1.5 * g / length, g), alpha, state, step)


def sgd(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    """Momentum 0.6, dampening 0.1, weight decay 0.2: dampening spares the first buffer."""
    g = g + 0.2 * z
    m = g if state is None else 0.6 * state + 0.9 * g
    return z - alpha * m, m


def adam(z: Tensor, g: Tensor, alpha: Any, state: Any, step: int) -> tuple[Tensor, Any]:
    """Adam with weight decay as in torch; epsilon is too small to matter."""
    g = g + 0.2 * z
    first, second = (torch.zeros_like(z),) * 2 if state is None else state
    first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g * g
    unbiased_first = first / (1 - 0.8 ** (step + 1))
    unbiased_second = second / (1 - 0.9 ** (step + 1))
    return z - alpha * unbiased_first / (unbiased_second.sqrt() + 1e-18), (first, second)


RULES: dict[str, tuple[UpdateRule, Move]] = {
    "descent": (GradientDescent(), descend),
    "momentum": (Momentum(0.6), heavy_ball),
    "nesterov": (Momentum(0.6, nesterov=True), nesterov),
    "clip": (ClipGradient(1.5), clip),
    "normalise": (NormaliseGradient(), normalise),
    "clip then momentum": (ClipGradient(1.5, then=Momentum(0.6)), clip_then_heavy_ball),
    "SGD": (
        TorchOptimiser(torch.optim.SGD, momentum=0.6, dampening=0.1, weight_decay=0.2),
        sgd,
    ),
    "Adam": (
        TorchOptimiser(torch.optim.Adam, betas=(0.8, 0.9), weight_decay=0.2, eps=1e-18),
        adam,
    ),
}
SIZES: dict[str, Callable[[int], dict[str, Any]]] = {
    "scalar": lambda steps: {},
    "channel": lambda steps: {"channels": WIDTH},
    "step": lambda steps: {"steps": steps},
    "channel and step": lambda steps: {"channels": WIDTH, "steps": steps},
}


def learned(kind: str, steps: int) -> LearnedStepSize:
    """A learned step size whose values differ, so that a mixed-up index shows."""
    size = LearnedStepSize(0.2, **SIZES[kind](steps)).double()
    (parameter,) = size.parameters()
    parameter.data = parameter.data + 0.3 * random(*parameter.shape, seed=50)
    return size


class Outcome(NamedTuple):
    """A refined latent and the gradients of its outer loss."""

    latent: Tensor
    gradients: tuple[Tensor, ...]


def program(rule: str, steps: int, kind: str, exact: int) -> Refine:
    """All steps in one function; only the last ``exact`` inner gradients are differentiated."""
    move = RULES[rule][1]

    def refine(z: Tensor, log_value: Tensor, *theta: Tensor) -> Tensor:
        state = None
        for step in range(steps):
            gradient = torch.func.grad(lambda z: support(z, theta).sum())(z)
            if step < steps - exact:
                gradient = gradient.detach()
            alpha = log_value[step if "step" in kind else 0].exp()
            z, state = move(z, gradient, alpha, state, step)
        return z

    return refine


@functools.cache
def written_out(rule: str, steps: int, kind: str, exact: int) -> Outcome:
    """The whole program as one function for ``torch.func.grad``."""
    refine = program(rule, steps, kind, exact)
    inputs = (random(TASKS, WIDTH), learned(kind, steps).log_value[0].detach(), *THETA)
    gradients = torch.func.grad(lambda *x: outer(refine(*x)), argnums=tuple(range(5)))(*inputs)
    return Outcome(refine(*inputs), gradients)


def adapted(policy: GradientPolicy, rule: UpdateRule, steps: int, size: StepSize) -> Outcome:
    """The same by the adapter and ``backward()``; zeros where no gradient arrives."""
    latent = random(TASKS, WIDTH, requires_grad=True)
    theta = [value.clone().requires_grad_() for value in THETA]
    adapter = LatentAdapter(size, steps=steps, differentiation=policy, update=rule)
    refined = adapter(latent, lambda z: support(z, theta)).latent
    outer(refined).backward()
    inputs = [latent, *size.parameters(), *theta]
    zeros = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
    return Outcome(refined.detach(), tuple(zeros))


def assert_same(received: Outcome, expected: Outcome) -> None:
    """To ten digits."""
    torch.testing.assert_close(received, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), Truncated(5)], ids=repr)
def test_an_exact_policy_equals_the_program_written_out(
    policy: GradientPolicy, rule: str, steps: int, kind: str
) -> None:
    """Value and gradients in latent, step sizes and decoder, for every rule."""
    received = adapted(policy, RULES[rule][0], steps, learned(kind, steps))
    assert_same(received, written_out(rule, steps, kind, steps))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("steps", "exact"), [(2, 0), (2, 1), (5, 1), (5, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_truncated_equals_the_program_with_earlier_gradients_detached(
    rule: str, steps: int, exact: int, kind: str
) -> None:
    """Latent and step sizes of the early steps still learn; the decoder from the last steps."""
    received = adapted(Truncated(exact), RULES[rule][0], steps, learned(kind, steps))
    assert_same(received, written_out(rule, steps, kind, exact))
    if exact == 0:
        assert all(torch.equal(g, torch.zeros_like(g)) for g in received.gradients[2:])
        first_order = adapted(FirstOrder(), RULES[rule][0], steps, learned(kind, steps))
        torch.testing.assert_close(received, first_order, rtol=0, atol=0)


def adapting(policy: GradientPolicy, rule: UpdateRule, kind: str) -> Refine:
    """Two steps of the adapter as a function of what they are differentiated in."""

    def refine(z: Tensor, log_value: Tensor, *theta: Tensor) -> Tensor:
        size = learned(kind, 2)
        adapter = LatentAdapter(size, steps=2, differentiation=policy, update=rule)
        given = (z, lambda z: support(z, theta))
        names = {"step_size.log_value.0": log_value}
        refined: Tensor = torch.func.functional_call(adapter, names, given).latent
        return refined

    return refine


def program_inputs(kind: str) -> tuple[Tensor, ...]:
    """Latent, step sizes and decoder, each a leaf."""
    inputs = (random(TASKS, WIDTH), learned(kind, 2).log_value[0].detach(), *THETA)
    return tuple(value.clone().requires_grad_() for value in inputs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), Truncated(2)], ids=repr)
def test_exact_policies_pass_gradgradcheck(policy: GradientPolicy, rule: str) -> None:
    """Third derivatives of the support loss, for whoever meta-learns the meta-learner."""
    refine = adapting(policy, RULES[rule][0], "channel and step")
    inputs = program_inputs("channel and step")
    # A hook in `higher`'s Adam cannot take gradients that are None; autograd itself hands on none.
    defined = {"check_undefined_grad": rule != "Adam"}
    assert torch.autograd.gradgradcheck(refine, inputs, **defined)


@pytest.mark.parametrize(
    ("policy", "exact"), [(Unrolled(), 2), (Checkpointed(), 2), (Truncated(1), 1)], ids=repr
)
@pytest.mark.parametrize("rule", RULES)
def test_second_derivatives_equal_those_of_the_program_written_out(
    rule: str, policy: GradientPolicy, exact: int
) -> None:
    """Of `Truncated(1)` too, whose gradient is that of no function a check could differentiate."""

    def second_derivatives(refine: Refine) -> tuple[Tensor, ...]:
        inputs = program_inputs("channel and step")
        first = torch.autograd.grad(outer(refine(*inputs)), inputs, create_graph=True)
        return torch.autograd.grad(sum(outer(gradient) for gradient in first), inputs)

    received = second_derivatives(adapting(policy, RULES[rule][0], "channel and step"))
    expected = second_derivatives(program(rule, 2, "channel and step", exact))
    torch.testing.assert_close(received, expected, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().max() > 1e-3 for gradient in received)


@pytest.mark.parametrize("policy", [Checkpointed(), Truncated(3)], ids=repr)
def test_captured_results_with_shared_ancestors_count_once(policy: GradientPolicy) -> None:
    """The decoder sees the encoder's output and shares its weights; so does the latent."""

    def gradients(policy: GradientPolicy) -> tuple[Tensor, ...]:
        weight, offset = random(3, 3, requires_grad=True), random(3, seed=2, requires_grad=True)
        memory = torch.tanh(random(TASKS, 3, seed=1) @ weight + offset)
        lower = memory.exp()

        def loss(z: Tensor) -> Tensor:
            return (torch.tanh(z @ weight.T) - memory).square().sum(1) + (z * lower).sin().sum(1)

        refined = LatentAdapter(0.2, steps=3, differentiation=policy)(memory, loss).latent
        return torch.autograd.grad(outer(refined) + memory.sum(), [weight, offset])

    torch.testing.assert_close(gradients(policy), gradients(Unrolled()), rtol=1e-10, atol=1e-12)


def test_truncated_settings() -> None:
    """A negative number is refused; more than there are steps is all of them."""
    with pytest.raises(ValueError, match="expected a number of steps >= 0, got -1"):
        Truncated(-1)
    size = FixedStepSize(0.3)
    exact = adapted(Unrolled(), GradientDescent(), 3, size)
    torch.testing.assert_close(
        adapted(Truncated(99), GradientDescent(), 3, size), exact, rtol=0, atol=0
    )


def test_policies_compare_and_print_as_values() -> None:
    """They hold settings only, so that one can be shared, compared and logged."""
    assert Truncated(2) == Truncated(2) != Truncated(3)
    assert repr(Truncated(2)) == "Truncated(last=2)"
    assert len({Unrolled(), Unrolled(), Checkpointed(), FiniteDifference(), Implicit()}) == 4


# --- how often, how much, and with which random numbers -------------------------------------------


@pytest.mark.parametrize(
    ("policy", "forward", "backward"),
    [
        (Unrolled(), 3, 0),
        (FirstOrder(), 3, 0),
        (Truncated(1), 3, 0),
        (Checkpointed(), 3, 3),
        (FiniteDifference(), 3, 6),
        (Implicit(), 4, 1),
    ],
    ids=repr,
)
def test_how_often_the_support_loss_is_evaluated(
    policy: GradientPolicy, forward: int, backward: int
) -> None:
    """The costs that the docstrings state."""
    calls = []
    theta = [value.clone().requires_grad_() for value in THETA]

    def loss(z: Tensor) -> Tensor:
        calls.append(1)
        return support(z, theta) + z.square().sum(1)

    latent = random(TASKS, WIDTH, requires_grad=True)
    refined = LatentAdapter(0.05, steps=3, differentiation=policy)(latent, loss).latent
    assert len(calls) == forward
    refined.sum().backward()
    assert len(calls) == forward + backward


def held_bytes(policy: GradientPolicy, steps: int, update: UpdateRule) -> int:
    """Bytes of the tensors that an adapter's forward pass leaves alive for its backward pass.

    A saved-tensor hook that returns an alias turns what autograd saves into Python objects, which
    the garbage collector can list beside those that Python itself holds.
    """
    wide = random(WIDTH, 5000, seed=3, requires_grad=True)
    narrow = random(5000, WIDTH, seed=4, requires_grad=True)
    latent = random(TASKS, WIDTH, requires_grad=True)
    given_ = {x.untyped_storage().data_ptr() for x in (wide, narrow, latent)}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach(), lambda x: x):
        result = LatentAdapter(1e-3, steps=steps, differentiation=policy, update=update)(
            latent, lambda z: (torch.tanh(z @ wide) @ narrow).square().sum(1)
        )
    gc.collect()
    storages = [x.untyped_storage() for x in gc.get_objects() if type(x) is Tensor]
    assert result.latent.requires_grad
    return sum({x.data_ptr(): x.nbytes() for x in storages if x.data_ptr() not in given_}.values())


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """The garbage collector looks at what the test makes, not at all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("update", [GradientDescent(), Momentum(0.5)], ids=repr)
def test_memory_grows_with_steps_for_unrolled_only(update: UpdateRule) -> None:
    """One hidden layer is 80 kB, a latent 48 bytes, the state of the random generator 5 kB."""
    hidden = TASKS * 5000 * 8
    small = 8_000  # the random state, a few latents
    counts = (1, 2, 5, 10)
    held = {
        policy: [held_bytes(policy, steps, update) for steps in counts]
        for policy in (Unrolled(), Checkpointed(), FiniteDifference(), Implicit(), Truncated(1))
    }
    for policy, sizes in held.items():
        for steps, size in zip(counts[1:], sizes[1:], strict=True):
            growth = (size - sizes[0]) / (steps - 1)
            if policy == Unrolled():
                assert growth > 2 * hidden, policy
            else:
                assert growth < small, policy
    for policy in (Checkpointed(), FiniteDifference(), Implicit()):
        assert held[policy][0] < small, "one step holds no graph either"
    assert held[Implicit()][3] - held[Implicit()][0] < 1000, "the losses alone"


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference()], ids=repr)
@pytest.mark.parametrize("steps", [1, 3])
def test_dropout_is_replayed_in_the_backward_pass(policy: GradientPolicy, steps: int) -> None:
    """Same seed, same masks, same gradient as `Unrolled`; later draws are not disturbed."""

    def gradients(policy: GradientPolicy) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        latent = random(TASKS, WIDTH, requires_grad=True)
        theta = [value.clone().requires_grad_() for value in THETA]

        def loss(z: Tensor) -> Tensor:
            hidden = F.dropout(torch.tanh(z @ theta[0] + theta[1]), 0.5)
            return (hidden @ theta[2] - TARGET + 0.1 * torch.rand(2)).square().sum(1)

        adapter = LatentAdapter(0.3, steps=steps, differentiation=policy)
        refined = adapter(latent, loss).latent
        torch.rand(5)  # draws between the forward and the backward pass
        outer(refined).backward()
        return [x.grad for x in (latent, *theta) if x.grad is not None], torch.rand(3)

    expected, following = gradients(Unrolled())
    received, then = gradients(policy)
    again, _ = gradients(policy)
    assert torch.equal(then, following)
    torch.testing.assert_close(received, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(again, received, rtol=0, atol=0)


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference(), Implicit()], ids=repr)
def test_names_that_the_loss_closes_over_may_be_reused_afterwards(policy: GradientPolicy) -> None:
    """A policy that evaluates the loss again in `backward()` must not see a loop's last target."""

    def gradient(policy: GradientPolicy, *, rebind: bool) -> Tensor:
        weight = random(WIDTH, WIDTH, seed=5, requires_grad=True)
        adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
        target = torch.zeros(TASKS, WIDTH, dtype=torch.float64)
        loss = lambda z: (torch.tanh(z @ weight) - target).square().sum(1) + z.square().sum(1)  # noqa: E731
        refined = adapter(random(TASKS, WIDTH), loss).latent
        if rebind:
            target = target + 5.0
        outer(refined).backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(policy, rebind=True), gradient(policy, rebind=False))


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_backward_can_be_taken_twice(policy: GradientPolicy) -> None:
    """`retain_graph=True` gives the same gradient again."""
    latent = random(TASKS, WIDTH, requires_grad=True)
    theta = [value.clone().requires_grad_() for value in THETA]
    adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
    loss = outer(adapter(latent, lambda z: support(z, theta) + z.square().sum(1)).latent)
    first = torch.autograd.grad(loss, [latent, *theta], retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, [latent, *theta], allow_unused=True)
    assert first[0] is not None
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_no_grad_and_a_frozen_decoder(policy: GradientPolicy) -> None:
    """Without a meta-graph the value is the same; without parameters only the latent learns."""
    latent = random(TASKS, WIDTH, requires_grad=True)
    adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
    loss = lambda z: support(z, THETA) + z.square().sum(1)  # noqa: E731
    refined = adapter(latent, loss).latent
    (gradient,) = torch.autograd.grad(refined.sum(), latent)
    assert gradient.abs().max() > 0.01
    with torch.no_grad():
        without = adapter(latent, loss, final_loss=True, trace=True)
    assert not without.latent.requires_grad
    assert torch.equal(without.latent, refined)
    assert without.losses.shape == (3, TASKS)


@pytest.mark.parametrize("policy", [Checkpointed(), Truncated(1)], ids=repr)
def test_fused_attention_is_refused_where_it_is_called(policy: GradientPolicy) -> None:
    """By the policies that need a second derivative, and with the remedies named."""

    def loss(z: Tensor) -> Tensor:
        heads = z.unsqueeze(1)
        return F.scaled_dot_product_attention(heads, heads, heads).square().sum(dim=(1, 2, 3))

    with pytest.raises(SecondDerivativeError, match=r"plain_attention.*FiniteDifference\(\)"):
        LatentAdapter(0.1, differentiation=policy)(random(2, 4, 8, requires_grad=True), loss)


def test_fused_attention_is_found_behind_partial() -> None:
    """Two partials share their type, not their code: the second must be looked at too."""

    def loss(z: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        heads = z.unsqueeze(1)
        return attend(heads, heads, heads).square().sum(dim=(1, 2, 3))

    adapter, latent = LatentAdapter(0.1), random(2, 4, 8, requires_grad=True)
    adapter(latent, functools.partial(loss, attend=plain_attention))
    with pytest.raises(SecondDerivativeError, match="plain_attention"):
        adapter(latent, functools.partial(loss, attend=F.scaled_dot_product_attention))


# --- tasks never mix ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_the_jacobian_across_tasks_is_exactly_zero(policy: GradientPolicy, rule: str) -> None:
    """Whatever the policy's solver and the rule's norms: blocks off the diagonal are 0."""
    target = random(3, 2, seed=2)
    adapter = LatentAdapter(0.1, steps=3, differentiation=policy, update=RULES[rule][0])

    def refine(latent: Tensor) -> Tensor:
        return adapter(latent, lambda z: support(z, THETA, target) + z.square().sum(1)).latent

    jacobian = torch.autograd.functional.jacobian(refine, random(3, WIDTH))
    for received in range(3):
        for source in range(3):
            block = jacobian[received, :, source]
            if received == source:
                assert block.abs().max() > 1e-3
            else:
                assert torch.equal(block, torch.zeros_like(block))


@pytest.mark.parametrize("rule", ["descent", "clip", "normalise", "Adam"])
@pytest.mark.parametrize("policy", ALL, ids=repr)
@settings(max_examples=4, deadline=None)
@given(tasks=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_a_task_learns_the_same_alone_and_in_a_batch(
    policy: GradientPolicy, rule: str, tasks: int, seed: int
) -> None:
    """Value, trace, and gradient in the latent; the decoder's gradient is the sum over tasks."""
    start, target = random(tasks, WIDTH, seed=seed), random(tasks, 2, seed=seed + 1)
    adapter = LatentAdapter(0.1, steps=2, differentiation=policy, update=RULES[rule][0])

    def learn(tasks: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latent, weight = start[tasks].clone().requires_grad_(), THETA[0].clone().requires_grad_()
        result = adapter(
            latent,
            lambda z: support(z, [weight, *THETA[1:]], target[tasks]) + z.square().sum(1),
            trace=True,
        )
        in_latent, in_weight = torch.autograd.grad(
            result.latent.sin().sum(), [latent, weight], allow_unused=True, materialize_grads=True
        )
        assert result.trace is not None
        return result.latent.detach(), result.trace.step_norms.T, in_latent, in_weight

    batch = learn(slice(None))
    alone = [learn(slice(b, b + 1)) for b in range(tasks)]
    for whole, parts in zip(batch[:3], zip(*[one[:3] for one in alone], strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-7, atol=1e-8)
    summed = torch.stack([one[3] for one in alone]).sum(0)
    torch.testing.assert_close(batch[3], summed, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["descent", "clip", "normalise", "Adam"])
@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_an_empty_batch_stays_empty(policy: GradientPolicy, rule: str) -> None:
    """The last shard of a data set can be empty, in the backward pass and the trace too."""
    latent = torch.zeros(0, WIDTH, requires_grad=True)
    weight = torch.ones(WIDTH, requires_grad=True)
    adapter = LatentAdapter(0.3, steps=2, differentiation=policy, update=RULES[rule][0])
    refined = adapter(latent, lambda z: (z * weight).square().sum(1), trace=True)
    refined.latent.sum().backward()
    assert refined.latent.shape == (0, WIDTH)
    assert refined.trace is not None
    assert refined.trace.step_sizes.shape == (2, 0)
    assert weight.grad is None or torch.equal(weight.grad, torch.zeros(WIDTH))


# --- pytrees, shapes, dtypes ----------------------------------------------------------------------


class Pair(NamedTuple):
    """A named latent of two parts."""

    first: Any
    second: Any


def trees(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nested dicts, lists, tuples and named tuples with one to a few leaves."""
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2),
            st.lists(inner, min_size=1, max_size=2),
            st.tuples(inner, inner),
            st.builds(Pair, inner, inner),
            st.builds(lambda a, b: OrderedDict(x=a, y=b), inner, inner),
        ),
        max_leaves=4,
    )


SHAPES = st.tuples(st.lists(st.integers(1, 3), max_size=3).map(tuple))


@pytest.mark.parametrize(
    ("policy", "slope"),
    [
        (Unrolled(), 0.25),
        (Checkpointed(), 0.25),
        (Truncated(1), 0.5),
        (FirstOrder(), 1.0),
        (FiniteDifference(), 0.25),
        (Implicit(), 0.0),
    ],
    ids=repr,
)
@settings(max_examples=15, deadline=None)
@given(
    tree=trees(SHAPES.map(lambda shape: {"shape": shape[0]})),
    tasks=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_pytree_of_any_shape_is_refined_leaf_by_leaf(
    policy: GradientPolicy, slope: float, tree: Any, tasks: int, dtype: torch.dtype
) -> None:
    """0.5 |z - c|^2 with size 0.5, two steps: z' = c + (z - c) / 4, and its derivatives."""
    is_leaf = lambda x: isinstance(x, dict) and set(x) == {"shape"}  # noqa: E731
    shapes, structure = _pytree.tree_flatten(tree, is_leaf=is_leaf)
    leaves = [
        random(tasks, *spec["shape"], seed=i).to(dtype).requires_grad_()
        for i, spec in enumerate(shapes)
    ]
    centre = torch.tensor(0.5, dtype=dtype, requires_grad=True)

    def loss(latent: Any) -> Tensor:
        assert _pytree.tree_structure(latent) == structure
        parts = _pytree.tree_leaves(latent)
        squares = [0.5 * (z - centre).square().reshape(tasks, -1).sum(1) for z in parts]
        return torch.stack(squares).sum(0)

    adapter = LatentAdapter(0.5, steps=2, differentiation=policy)
    result = adapter(_pytree.tree_unflatten(leaves, structure), loss, trace=True)
    refined, received = _pytree.tree_flatten(result.latent)
    assert received == structure
    assert result.losses.shape == (2, tasks)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    for before, after in zip(leaves, refined, strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        torch.testing.assert_close(after, centre + 0.25 * (before - centre))
    inputs = [*leaves, centre]
    gradients = torch.autograd.grad(
        sum(leaf.sum() for leaf in refined), inputs, allow_unused=True, materialize_grads=True
    )
    for gradient in gradients[:-1]:
        expected = torch.full_like(gradient, slope)
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)
    count = sum(leaf.numel() for leaf in leaves)
    # Every exact step adds half of what is left: 1 - 0.25, 0.5, nothing; an optimum is the centre.
    share = 0.0 if policy == FirstOrder() else 1 - slope
    torch.testing.assert_close(gradients[-1].item(), share * count, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), Truncated(2)], ids=repr)
def test_leaves_of_different_precision_keep_it(policy: GradientPolicy) -> None:
    """A half-precision image latent may live beside a float64 one."""
    latent = {
        "a": random(2, 3).requires_grad_(),
        "b": random(2, 4, seed=1).to(torch.bfloat16).requires_grad_(),
    }
    result = LatentAdapter(0.5, steps=2, differentiation=policy)(
        latent,
        lambda p: 0.5 * (p["a"].square().sum(1) + p["b"].double().square().sum(1)),
        trace=True,
    )
    sum(leaf.double().sum() for leaf in result.latent.values()).backward()
    for name, leaf in latent.items():
        assert result.latent[name].dtype == leaf.dtype
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 0.25), rtol=1e-2, atol=1e-2)


# --- the trace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*ALL[:-1], Implicit()], ids=repr)
def test_the_trace_of_a_quadratic_has_its_closed_form(policy: GradientPolicy) -> None:
    """0.5 k |z|^2 with size a: gradients k (1 - a k)^t |z|, steps a times as long."""
    curvature = torch.tensor([1.0, 2.0], dtype=torch.float64)
    latent = random(2, 3, 2, requires_grad=True)
    adapter = LatentAdapter(0.2, steps=3, differentiation=policy)
    trace = adapter(latent, lambda z: 0.5 * curvature * z.square().sum((1, 2)), trace=True).trace
    powers = torch.arange(3, dtype=torch.float64).unsqueeze(1)
    lengths = latent.detach().flatten(1).norm(dim=1)
    expected = curvature * (1 - 0.2 * curvature) ** powers * lengths
    assert trace is not None
    torch.testing.assert_close(trace.gradient_norms, expected)
    torch.testing.assert_close(trace.step_norms, 0.2 * expected)
    torch.testing.assert_close(trace.step_sizes, torch.full((3, 2), 0.2, dtype=torch.float64))
    assert not trace.gradient_norms.requires_grad
    assert not trace.step_norms.requires_grad


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), FiniteDifference()], ids=repr)
@pytest.mark.parametrize("rule", ["nesterov", "clip", "Adam"])
def test_the_trace_measures_the_moves_of_all_leaves(policy: GradientPolicy, rule: str) -> None:
    """Norms over the leaves of one task; the gradient is the loss's, before clipping."""
    latent = {"a": random(2, 3), "b": random(2, 2, 2, seed=1)}
    size = LearnedStepSize(0.1, channels={"a": 3, "b": 2}, steps=2).double()
    adapter = LatentAdapter(size, steps=2, differentiation=policy, update=RULES[rule][0])

    def loss(p: dict[str, Tensor]) -> Tensor:
        return p["a"].cos().sum(1) + (p["b"] ** 3).sum((1, 2))

    path = [latent, *(adapter(latent, loss, steps=steps).latent for steps in (1, 2))]
    trace = adapter(latent, loss, trace=True).trace
    assert trace is not None
    for step in range(2):
        before, after = path[step], path[step + 1]
        squares = before["a"].sin().square().sum(1) + (3 * before["b"] ** 2).square().sum((1, 2))
        torch.testing.assert_close(trace.gradient_norms[step], squares.sqrt().detach())
        moves = [(after[name] - before[name]).detach().flatten(1) for name in before]
        torch.testing.assert_close(trace.step_norms[step], torch.cat(moves, 1).norm(dim=1))
    torch.testing.assert_close(trace.step_sizes, trace.step_norms / trace.gradient_norms)


def test_the_trace_of_a_flat_task_is_zero_and_of_no_steps_empty() -> None:
    """No division by zero; no steps is a valid call, traced or not."""
    weight = torch.tensor([0.0, 1.0])
    adapter = LatentAdapter(0.5)
    trace = adapter(torch.ones(2, 3), lambda z: weight * z.sum(1), trace=True).trace
    assert trace is not None
    torch.testing.assert_close(trace.step_sizes, torch.tensor([[0.0, 0.5]]))
    assert adapter(torch.ones(2, 3), lambda z: z.sum(1)).trace is None

    none = adapter(torch.ones(2, 3), lambda z: z.sum(1), steps=0, trace=True)
    assert torch.equal(none.latent, torch.ones(2, 3))
    assert none.trace is not None
    assert none.trace.step_norms.shape == none.trace.step_sizes.shape == (0, 2)


# --- mixed precision ------------------------------------------------------------------------------

IN_AUTOCAST = [
    Unrolled(),
    Checkpointed(),
    FirstOrder(),
    FiniteDifference(),
    Implicit(damping=2.0),
]


@pytest.mark.parametrize("policy", IN_AUTOCAST, ids=repr)
def test_full_precision_switches_autocast_off_in_the_inner_loop(policy: GradientPolicy) -> None:
    """Loss and inner gradient are those of float32 to the last bit; the latent keeps its dtype."""
    seen = []
    torch.manual_seed(0)
    decoder = nn.Linear(16, 16)
    latent = random(4, 16).to(torch.bfloat16)

    def loss(z: Tensor) -> Tensor:
        seen.append((z.dtype, decoder(z).dtype))
        return (torch.tanh(decoder(z)) - 1).square().sum(1)

    adapter = LatentAdapter(0.3, steps=2, differentiation=policy, full_precision=True)
    expected = adapter(latent, loss, trace=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        received = adapter(latent, loss, trace=True, final_loss=True)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen[:-1]) == {(torch.float32, torch.float32)}
    assert received.latent.dtype == torch.bfloat16
    assert received.trace is not None
    assert expected.trace is not None
    assert torch.equal(received.losses[:2], expected.losses)
    assert torch.equal(received.trace.gradient_norms, expected.trace.gradient_norms)
    assert torch.equal(received.latent, expected.latent)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("policy", IN_AUTOCAST, ids=repr)
def test_full_precision_holds_in_the_outer_backward_pass(
    policy: GradientPolicy, inside: bool
) -> None:
    """Also where ``backward()`` is called inside autocast, which torch advises against."""

    def gradient(*, autocast: bool) -> Tensor:
        torch.manual_seed(0)
        decoder = nn.Linear(16, 16)
        latent = random(4, 16).float().requires_grad_()
        adapter = LatentAdapter(0.3, steps=2, differentiation=policy, full_precision=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            refined = adapter(latent, lambda z: (torch.tanh(decoder(z)) - 1).square().sum(1)).latent
            if inside:
                outer(refined).backward()
        if not inside:
            outer(refined).backward()
        grad = decoder.weight.grad
        return torch.zeros(1) if grad is None else grad

    exact, received = gradient(autocast=False), gradient(autocast=True)
    assert (received - exact).norm() <= 2e-2 * exact.norm()


@pytest.mark.parametrize("policy", [p for p in IN_AUTOCAST if p != FiniteDifference()], ids=repr)
def test_autocast_runs_a_loss_that_attends_to_a_half_precision_encoder(
    policy: GradientPolicy,
) -> None:
    """A captured bfloat16 tensor only fits a float32 latent under autocast, backward included."""

    def gradient(*, autocast: bool) -> Tensor:
        torch.manual_seed(0)
        encoder = nn.Linear(3, 16)
        latent = random(4, 16).float().requires_grad_()
        adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            memory = encoder(random(4, 3, seed=1).float())
            refined = adapter(latent, lambda z: (z @ memory.T).float().square().sum(1)).latent
        (refined.square().sum() + memory.float().sum()).backward()
        assert encoder.weight.grad is not None
        return encoder.weight.grad

    exact = gradient(autocast=False)
    assert (gradient(autocast=True) - exact).norm() < 0.1 * exact.norm()
