"""`functional`: gradients against autograd by hand, tasks against a loop, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    ElementwiseStepSize,
    FirstOrder,
    Implicit,
    LatentAdapter,
    LatentError,
    functional,
)
from metalearn.errors import ModuleError

TASKS, SHOTS = 3, 4


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(TASKS, 2 * SHOTS, 2, generator=g, dtype=torch.float64)
    return x, torch.randn(TASKS, 2 * SHOTS, 1, generator=g, dtype=torch.float64)


def by_hand(weights: list[Tensor], steps: int, adapted: set[int], first_order: bool) -> Tensor:
    """Mean query loss, task after task, without any of the library."""
    x, y = data()

    def loss(w: list[Tensor], task: int, rows: slice) -> Tensor:
        hidden = torch.tanh(x[task, rows] @ w[0].T + w[1])
        return (hidden @ w[2].T + w[3] - y[task, rows]).square().mean()

    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):
        own = list(weights)
        for _ in range(steps):
            chosen = [own[n] for n in sorted(adapted)]
            slopes = torch.autograd.grad(
                loss(own, task, slice(SHOTS)), chosen, create_graph=not first_order
            )
            for n, slope in zip(sorted(adapted), slopes, strict=True):
                own[n] = own[n] - 0.1 * slope
        total = total + loss(own, task, slice(SHOTS, None))
    return total / TASKS


def query(net: Any, adapter: LatentAdapter) -> Tensor:
    x, y = data()

    def loss(params: dict[str, Tensor], rows: slice) -> Tensor:
        return (net.vmap(params, x[:, rows]) - y[:, rows]).square().mean((1, 2))

    tuned: Any = adapter(net.expand(TASKS), lambda p: loss(p, slice(SHOTS))).latent
    return loss(tuned, slice(SHOTS, None)).mean()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapt", [None, "2"])
def test_gradients_are_those_of_autograd_by_hand(first_order: bool, adapt: str | None) -> None:
    """MAML and ANIL, second and first order, two steps, in every weight."""
    network = perceptron()
    policy = FirstOrder() if first_order else None
    value = query(functional(network, adapt), LatentAdapter(0.1, steps=2, differentiation=policy))
    weights = list(network.parameters())
    expected = by_hand(weights, 2, {2, 3} if adapt else {0, 1, 2, 3}, first_order)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(v, weights) for v in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_gradients_and_their_gradients_by_finite_differences() -> None:
    network = perceptron()
    weight = network[2].weight.detach().clone().requires_grad_()

    def value(w: Tensor) -> Tensor:
        x, y = data()
        net = functional(network, "2")
        start = {"2.weight": w.expand(TASKS, *w.shape), "2.bias": net.expand(TASKS)["2.bias"]}
        loss = lambda p: (net.vmap(p, x) - y).square().mean((1, 2))  # noqa: E731
        return loss(LatentAdapter(0.1, steps=2)(start, loss).latent).sum()

    assert torch.autograd.gradcheck(value, (weight,))
    assert torch.autograd.gradgradcheck(value, (weight,))


def test_tasks_are_those_of_a_loop() -> None:
    net = functional(perceptron())
    x, _ = data()
    params = {n: p + torch.randn_like(p) for n, p in net.expand(TASKS).items()}
    mapped = net.vmap(params, x)
    alone = [net({n: p[b] for n, p in params.items()}, x[b]) for b in range(TASKS)]
    torch.testing.assert_close(mapped, torch.stack(alone))
    shared = net.vmap(params, x[0], in_dims=None)
    torch.testing.assert_close(shared[1], net({n: p[1] for n, p in params.items()}, x[0]))


def test_saved_sizes_are_found_by_their_names() -> None:
    """Not by their order, which another module may have otherwise; never those of other leaves."""
    one, two = torch.zeros(3), torch.zeros(3)
    made = ElementwiseStepSize(0.1, {"a": one, "b": two})
    with torch.no_grad():
        made.value[0].fill_(7.0)
    state = made.state_dict()
    other = ElementwiseStepSize(0.1, {"b": two, "a": one})
    other.load_state_dict(state)
    sizes = {name: value[0].item() for name, value in zip(other.names, other.value, strict=True)}
    assert sizes == pytest.approx({"['a']": 7.0, "['b']": 0.1})
    assert made.state_dict().keys() == state.keys(), "loading leaves the state as it was"
    with pytest.raises(LatentError, match=r"for \['a'\], \['c'\], got one for \['a'\], \['b'\]"):
        ElementwiseStepSize(0.1, {"a": one, "c": two}).load_state_dict(state)
    by_place = {key: value for key, value in state.items() if "names" not in key}
    other.load_state_dict(by_place)  # of an earlier revision
    assert other.value[0][0].item() == 7.0


def test_meta_sgd_learns_a_size_for_every_element() -> None:
    net = functional(perceptron())
    plain = query(net, LatentAdapter(0.1, steps=2))
    sizes = ElementwiseStepSize(0.1, net.params).double()
    value = query(net, LatentAdapter(sizes, steps=2))
    torch.testing.assert_close(value, plain)
    value.backward()
    assert [s.shape for s in sizes.value] == [p.shape for p in net.params.values()]
    with torch.no_grad():
        sizes.value[0][0, 0] += 1e-6
    moved = query(net, LatentAdapter(sizes, steps=2))
    slope = sizes.value[0].grad
    assert slope is not None
    assert ((moved - value) / 1e-6).item() == pytest.approx(slope[0, 0].item(), rel=1e-4)
    with pytest.raises(LatentError, match="shapes that step sizes were made for"):
        query(functional(net.module, "2"), LatentAdapter(sizes))


def test_imaml_differentiates_the_proximal_optimum() -> None:
    """Of a linear model: z* solves (A + mu) z = b + mu theta, so dz*/dtheta = mu (A + mu)^-1."""
    layer = nn.Linear(2, 1, bias=False).double()
    net, (x, y) = functional(layer), data()
    loss: Callable[[Any], Tensor] = lambda p: (net.vmap(p, x) - y).square().sum((1, 2)) / 2  # noqa: E731
    policy = Implicit(proximal=3.0, tolerance=1e-12)
    tuned: Any = LatentAdapter(0.03, steps=600, differentiation=policy)(net.expand(TASKS), loss)
    tuned.latent["weight"].sum().backward()
    eye = torch.eye(2, dtype=torch.float64)
    ones = torch.ones(1, 2, dtype=torch.float64)
    wanted = sum(3 * ones @ torch.linalg.inv(x[b].T @ x[b] + 3 * eye) for b in range(TASKS))
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-6, atol=0)


class Tied(nn.Module):
    """Embedding and output share a weight; a buffer counts calls, another scales."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.get_buffer("scale") * self.out(self.embed(x).tanh())


def test_tied_weights_have_one_entry_and_one_gradient() -> None:
    module = Tied()
    for name in (None, "embed", "out"):
        assert functional(module, name).names == ("embed.weight",)
    net, x = functional(module), torch.randn(2, 4, 3)
    params = {n: (p + 1).detach().requires_grad_() for n, p in net.expand(2).items()}
    net.vmap(params, x)[1].sum().backward()
    w = params["embed.weight"].detach()[1].requires_grad_()
    (2 * ((x[1] @ w.T).tanh() @ w.T)).sum().backward()
    grad = params["embed.weight"].grad
    assert grad is not None
    torch.testing.assert_close(grad[1], w.grad)


def test_buffers_are_used_and_never_written() -> None:
    module, x = Tied(), torch.randn(4, 3)
    net = functional(module)
    before = net(dict(net.params), x)
    assert module.calls == 0
    module.scale.mul_(3)  # the module's own, at the time of the call
    torch.testing.assert_close(net(dict(net.params), x), 3 * before)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean(0)
        return self.layer(x)  # type: ignore[no-any-return]


def test_a_buffer_that_tasks_would_write_to_is_refused() -> None:
    net = functional(Remembers())
    with pytest.raises(ModuleError, match=r"Remembers not to write to its buffers.*of seen"):
        net.vmap(net.expand(2), torch.randn(2, 4, 3))
    assert not net.module.get_buffer("seen").any()


def test_running_statistics_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModuleError, match=r"got 1 BatchNorm1d in training mode; use \.eval\(\)"):
        functional(network)
    net = functional(network.eval())
    assert net.vmap(net.expand(2), torch.randn(2, 6, 3)).shape == (2, 6, 4)
    network.train()
    with pytest.raises(ModuleError, match="GroupNorm"):
        net.vmap(net.expand(2), torch.randn(2, 6, 3))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, track_running_stats=False), nn.GroupNorm(2, 4)])
def test_what_the_refusal_advises_works_to_second_order(norm: nn.Module) -> None:
    network = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh())
    net, x = functional(network), torch.randn(2, 6, 3)
    loss: Callable[[Any], Tensor] = lambda p: net.vmap(p, x).square().sum((1, 2))  # noqa: E731
    params: Any = LatentAdapter(0.01, steps=2)(net.expand(2), loss).latent
    one = [net({n: p[b] for n, p in params.items()}, x[b]) for b in range(2)]
    torch.testing.assert_close(net.vmap(params, x), torch.stack(one), rtol=1e-4, atol=1e-5)
    loss(params).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_selectors_choose_by_whole_names() -> None:
    network = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    assert functional(network, "head").names == ("head.weight", "head.bias")
    assert functional(network, ["header.bias", "head"]).names[-1] == "header.bias"
    assert functional(network, lambda name, p: p.ndim == 1).names == ("head.bias", "header.bias")
    network["head"].requires_grad_(False)
    assert functional(network).names == ("header.weight", "header.bias")


@pytest.mark.parametrize("adapt", ["hea", ["head", "tail"], lambda name, p: False, []])
def test_a_choice_of_nothing_is_refused_with_the_names(adapt: Any) -> None:
    network = nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(ModuleError, match=r"it has head\.weight, head\.bias"):
        functional(network, adapt)


def test_other_refusals() -> None:
    with pytest.raises(ModuleError, match="lazy ones without: weight"):
        functional(nn.LazyLinear(2))
    net = functional(nn.Linear(2, 2))
    with pytest.raises(ModuleError, match="parameters named weight, bias, got weight"):
        net({"weight": net.params["weight"]}, torch.randn(1, 2))


def test_dropout_draws_for_every_task() -> None:
    net = functional(nn.Sequential(nn.Linear(2, 64), nn.Dropout(0.5)))
    x = torch.ones(2, 1, 2)
    with pytest.raises(RuntimeError, match="randomness"):
        net.vmap(net.expand(2), x)
    torch.manual_seed(0)
    first, second = net.vmap(net.expand(2), x, randomness="different")
    assert not torch.equal(first, second)
