"""A loss may write to the latent it is given: the caller's tensor and the gradients stay right.

Reported wherever a network begins with ``nn.ReLU(inplace=True)`` or adds positions with ``x +=``
(https://github.com/learnables/learn2learn/issues/154 among many).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LatentError,
    Truncated,
    Unrolled,
)

EXACT = [Unrolled(), Checkpointed(), Truncated(3)]
ALL = [*EXACT, FirstOrder(), FiniteDifference(), Implicit(proximal=2.0)]


def values(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_the_example_of_the_report() -> None:
    """relu_, then (. - 1)^2: the refined latent is [-1, 1.5], its slopes are 1 and .5."""
    for policy in EXACT:
        latent = torch.ones((), requires_grad=True) * torch.tensor([[-1.0, 2.0]])
        latent.retain_grad()
        adapter = LatentAdapter(0.25, differentiation=policy)
        refined = adapter(latent, lambda z: (z.relu_() - 1).square().sum(1)).latent
        assert latent.tolist() == [[-1.0, 2.0]]
        assert refined.tolist() == [[-1.0, 1.5]]
        refined.sum().backward()
        assert latent.grad is not None
        assert latent.grad.tolist() == [[1.0, 0.5]]


def relu(z: Tensor) -> Tensor:
    return nn.ReLU(inplace=True)(z)


def positions(z: Tensor) -> Tensor:
    z += torch.arange(3.0, dtype=z.dtype)
    return z


def one_column(z: Tensor) -> Tensor:
    z[:, 0] = z[:, 1] * 2
    return z


def through_a_view(z: Tensor) -> Tensor:
    z[:, ::2].mul_(0.5)
    return z


def over_all(z: Tensor) -> Tensor:
    return z.tanh_()


PURE = {
    relu: lambda z: z.relu(),
    positions: lambda z: z + torch.arange(3.0, dtype=z.dtype),
    one_column: lambda z: torch.cat([z[:, 1:2] * 2, z[:, 1:]], 1),
    through_a_view: lambda z: z * z.new_tensor([0.5, 1.0, 0.5]),
    over_all: lambda z: z.tanh(),
}


def adapted(
    policy: GradientPolicy, write: Callable[[Tensor], Tensor], kind: str, **settings: Any
) -> list[Tensor]:
    """Refined latent, its losses, and outer gradients in a leaf before the latent and a weight."""
    source, weight = values(4, 3).requires_grad_(), values(3, 3, seed=1).requires_grad_()
    if kind == "expanded":
        source = values(3).requires_grad_()
    tensor = source.expand(4, 3) if kind == "expanded" else source
    tensor = tensor * 1.0 if kind == "result" else tensor
    before = tensor.detach().clone()
    wrap: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
        "dict": (lambda z: {"a": z, "b": z * 2}, lambda p: write(p["a"]) + write(p["b"])),
        "list": (lambda z: [z[:2].repeat(2, 1), z], lambda p: write(p[0]) * write(p[1])),
    }
    pack, read = wrap.get(kind, (lambda z: z, write))

    def loss(z: Any, tasks: slice = slice(None)) -> Tensor:
        return (torch.tanh(read(z) @ weight) - 1).square().sum(1)

    adapter = LatentAdapter(0.1, steps=3, differentiation=policy, **settings)
    found = adapter(pack(tensor), loss, final_loss=True)
    leaves = torch.utils._pytree.tree_leaves(found.latent)
    total = torch.stack([(leaf.sin() * n).sum() for n, leaf in enumerate(leaves, 1)]).sum()
    result = [*(leaf.detach().clone() for leaf in leaves), found.losses]
    if total.requires_grad:
        result += torch.autograd.grad(
            total, [source, weight], allow_unused=True, materialize_grads=True
        )
    assert torch.equal(tensor, before)
    return result


@pytest.mark.filterwarnings("ignore::metalearn.errors.CurvatureWarning")
@pytest.mark.parametrize("kind", ["leaf", "result", "expanded", "dict", "list"])
@pytest.mark.parametrize("write", PURE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_a_loss_that_writes_equals_one_that_does_not(
    policy: GradientPolicy, write: Callable[[Tensor], Tensor], kind: str
) -> None:
    torch.testing.assert_close(
        adapted(policy, write, kind), adapted(policy, PURE[write], kind), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("write", PURE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed(), FirstOrder()], ids=repr)
def test_in_chunks_and_without_a_graph(
    policy: GradientPolicy, write: Callable[[Tensor], Tensor]
) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            received = adapted(policy, write, "leaf", chunk_size=3)
            torch.testing.assert_close(received, adapted(policy, PURE[write], "leaf"))


def test_under_torch_func() -> None:
    def refine(z: Tensor, write: Any) -> Tensor:
        loss = lambda y: (torch.tanh(write(y)) - 1).square().sum(1)  # noqa: E731
        refined: Tensor = LatentAdapter(0.1, steps=2)(z, loss).latent.sin().sum()
        return refined

    z = values(4, 3)
    received = torch.func.grad(refine)(z.clone(), relu)
    torch.testing.assert_close(received, torch.func.grad(refine)(z, PURE[relu]))


@pytest.mark.parametrize("policy", [Checkpointed(), Unrolled()], ids=repr)
def test_differentiated_twice(policy: GradientPolicy) -> None:
    def refine(z: Tensor, write: Any) -> Tensor:
        adapter = LatentAdapter(0.1, steps=2, differentiation=policy)
        refined: Tensor = adapter(z, lambda y: (torch.tanh(write(y)) - 1).square().sum(1)).latent
        return refined.square()

    z = values(2, 3)
    hessian = torch.autograd.functional.hessian
    received = hessian(lambda z: refine(z, over_all).sum(), z)
    torch.testing.assert_close(received, hessian(lambda z: refine(z, PURE[over_all]).sum(), z))


def test_a_module_dict_handed_over_is_the_losss_own() -> None:
    """It may also take the pytree apart."""
    latent = {"a": values(2, 3), "b": values(2, 3, seed=1)}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (p.pop("a") + p.pop("b")).square().sum(1)

    LatentAdapter(0.1, steps=2)(latent, loss)
    assert list(latent) == ["a", "b"]


@pytest.mark.parametrize("policy", [Unrolled(), Checkpointed()], ids=repr)
def test_writing_in_later_steps_only_is_refused(policy: GradientPolicy) -> None:
    """No copy is made where the first step showed that none is needed."""
    calls = []

    def loss(z: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            z = z * 1.0 if policy == Checkpointed() else z
            z = z.relu_()
        return z.square().sum(1)

    latent = values(2, 3).requires_grad_()
    adapter = LatentAdapter(0.1, steps=3, differentiation=policy)
    if policy == Checkpointed():
        adapter(latent, loss)
        return
    with pytest.raises((LatentError, RuntimeError), match=r"every call or in none|in-place"):
        adapter(latent * 1.0, loss)
