"""Step sizes of a pytree latent belong to the names of its leaves, not to their order.

The kind of ultralytics/yolov5#4657, where settings and their ranges met by place although both
were dicts. Here the sizes of `{"a": ..., "b": ...}` were given to `{"b": ..., "a": ...}` by place.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    LatentAdapter,
    LatentError,
    LearnedStepSize,
    Momentum,
    Truncated,
    Unrolled,
)
from metalearn.pytrees import flatten, leaf_names

Pair = namedtuple("Pair", ["mean", "scale"])
POLICIES = [Unrolled(), Checkpointed(), FiniteDifference(), FirstOrder(), Truncated(1)]
NAMES = ("a", "b", "c")


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sized(channels: Any) -> LearnedStepSize:
    """Step sizes of which no two are alike."""
    size = LearnedStepSize(0.3, channels=channels, steps=2).double()
    for number, parameter in enumerate(size.parameters()):
        parameter.data = parameter.data + 0.5 * random(*parameter.shape, seed=number)
    return size


def loss(latent: dict[str, Tensor]) -> Tensor:
    """Whose gradients differ between the leaves."""
    return sum(((n + 1) * latent[name].cos()).sum(1) for n, name in enumerate(NAMES))


def start() -> dict[str, Tensor]:
    return {name: random(2, 3, seed=10 + n) for n, name in enumerate(NAMES)}


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)), ids="".join)
def test_the_order_of_a_dict_does_not_matter(policy: GradientPolicy, order: tuple[str]) -> None:
    """Values to the bit, and gradients of latents and of step sizes."""
    results = []
    for names in (NAMES, order):
        size = sized(dict.fromkeys(NAMES, 3))
        latent = {name: start()[name].requires_grad_() for name in names}
        adapter = LatentAdapter(size, steps=2, differentiation=policy, update=Momentum(0.5))
        refined = adapter(latent, loss).latent
        sum((n + 1) * refined[name].sin().sum() for n, name in enumerate(NAMES)).backward()
        moved = [refined[name].detach() for name in NAMES]
        gradients = [latent[name].grad for name in NAMES]
        results.append((moved, gradients, [p.grad for p in size.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-15)


def test_the_sizes_are_those_of_the_name() -> None:
    """Written out: one step, each leaf by its own vector."""
    size = sized({"a": 3, "b": 3, "c": 3})
    latent = {name: start()[name] for name in ("c", "a", "b")}
    refined = LatentAdapter(size)(latent, loss).latent
    for n, name in enumerate(NAMES):
        expected = latent[name] + size.log_value[n][0].exp() * (n + 1) * latent[name].sin()
        torch.testing.assert_close(refined[name], expected)


def test_nested_structures_go_by_path() -> None:
    """A dict within a list within a named tuple; only dicts have an order that may vary."""
    size = sized(Pair(mean=[{"x": 3, "y": 3}], scale=3))
    parts = {key: random(2, 3, seed=n) for n, key in enumerate("xys")}

    def nested_loss(z: Any) -> Tensor:
        first = z.mean[0]
        return (first["x"].cos() + 2 * first["y"].cos() + 3 * z.scale.cos()).sum(1)

    one = Pair(mean=[{"x": parts["x"], "y": parts["y"]}], scale=parts["s"])
    other = Pair(mean=[{"y": parts["y"], "x": parts["x"]}], scale=parts["s"])
    moved = [LatentAdapter(size, steps=2)(z, nested_loss).latent for z in (one, other)]
    assert torch.equal(moved[0].mean[0]["x"], moved[1].mean[0]["x"])
    assert torch.equal(moved[0].mean[0]["y"], moved[1].mean[0]["y"])
    assert torch.equal(moved[0].scale, moved[1].scale)


def test_any_kind_of_dict_has_the_same_names() -> None:
    size = sized({"a": 3, "b": 3, "c": 3})
    plain = LatentAdapter(size)(start(), loss).latent
    turned = [(name, start()[name]) for name in reversed(NAMES)]
    for latent in (OrderedDict(turned), defaultdict(list, turned)):
        moved = LatentAdapter(size)(latent, loss).latent
        assert all(torch.equal(moved[name], plain[name]) for name in NAMES)


def test_chunks_go_by_name_too() -> None:
    size = sized(dict.fromkeys(NAMES, 3))
    turned = {name: start()[name] for name in reversed(NAMES)}
    whole = LatentAdapter(size)(start(), loss).latent
    parts = LatentAdapter(size, chunk_size=1)(turned, lambda z, tasks: loss(z)).latent
    assert all(torch.equal(parts[name], whole[name]) for name in NAMES)


def test_under_torch_compile() -> None:
    size = sized(dict.fromkeys(NAMES, 3))
    adapter = LatentAdapter(size)
    compiled = torch.compile(lambda z: adapter(z, loss).latent, fullgraph=True, backend="eager")
    turned = {name: start()[name] for name in reversed(NAMES)}
    moved, plain = compiled(turned), adapter(start(), loss).latent
    torch.testing.assert_close({name: moved[name] for name in NAMES}, plain)


@pytest.mark.parametrize(
    ("latent", "names"),
    [
        ({"a": 1, "b": 1, "d": 1}, r"\['a'\], \['b'\], \['d'\]"),
        ({"a": 1, "b": 1}, r"\['a'\], \['b'\]"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, r"\['a'\], \['b'\], \['c'\], \['d'\]"),
        ({"a": 1, "b": {"c": 1}, "c": 1}, r"\['a'\], \['b'\]\['c'\], \['c'\]"),
        ([1, 1, 1], r"\[0\], \[1\], \[2\]"),
        (1, "the latent has"),
    ],
    ids=str,
)
def test_other_names_are_refused(latent: Any, names: str) -> None:
    """Both sets of names are in the message."""
    leaves, structure = _pytree.tree_flatten(latent)
    given = _pytree.tree_unflatten([torch.ones(2, 3) for _ in leaves], structure)
    adapter = LatentAdapter(LearnedStepSize(0.1, channels=dict.fromkeys(NAMES, 3)))
    with pytest.raises(LatentError, match=rf"for \['a'\], \['b'\], \['c'\], .*{names}.*`channels`"):
        adapter(given, lambda z: sum(leaf.sum(1) for leaf in flatten(z)[0]))


def test_a_structure_of_one_leaf_has_a_name_too() -> None:
    """One size is shared by all leaves only if no structure was asked for."""
    adapter = LatentAdapter(LearnedStepSize(0.1, channels={"a": 3}))
    assert adapter({"a": torch.ones(2, 3)}, lambda z: z["a"].sum(1)).latent["a"][0, 0] < 1
    for latent in ({"b": torch.ones(2, 3)}, {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}):
        with pytest.raises(LatentError, match=r"made for \['a'\], the latent has"):
            adapter(latent, lambda z: z["b"].sum(1))


def test_a_state_finds_its_leaves_by_name() -> None:
    """Saved in one order, loaded in another, with and without a prefix."""
    saved = LatentAdapter(sized({"a": 3, "b": 3, "c": 3}))
    other = LatentAdapter(LearnedStepSize(1.0, channels={"c": 3, "a": 3, "b": 3}, steps=2).double())
    other.load_state_dict(saved.state_dict())
    moved, expected = other(start(), loss).latent, saved(start(), loss).latent
    assert all(torch.equal(moved[name], expected[name]) for name in NAMES)
    assert torch.equal(other.step_size.log_value[0], saved.step_size.log_value[2])
    with pytest.raises(LatentError, match=r"for \['x'\], \['y'\], got one for \['a'\], \['b'\]"):
        LearnedStepSize(1.0, channels={"x": 3, "y": 3}).load_state_dict(
            sized({"a": 3, "b": 3}).state_dict()
        )


def test_a_state_without_names_is_loaded_by_place() -> None:
    """As states were saved before; sizes without names have the keys they always had."""
    size = sized({"a": 3, "b": 2})
    old = {key: value for key, value in size.state_dict().items() if key != "log_value_names"}
    assert set(old) == {"log_value.0", "log_value.1"}
    other = LearnedStepSize(1.0, channels={"a": 3, "b": 2}, steps=2).double()
    other.load_state_dict(old)
    assert torch.equal(other.log_value[1], size.log_value[1])
    assert set(LearnedStepSize(1.0, channels=3).state_dict()) == {"log_value.0"}


def test_a_state_with_names_is_saved_and_copied_like_any_other(tmp_path: Any) -> None:
    size = sized({"a": 3, "b": 2})
    torch.save(size.state_dict(), tmp_path / "state.pt")
    other = LearnedStepSize(1.0, channels={"b": 2, "a": 3}, steps=2).double()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.log_value[1], size.log_value[0])
    assert torch.equal(copy.deepcopy(size).log_value[0], size.log_value[0])


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(5, (4, 2)), (5, (4, 1)), (4, (4,)), (1, (4, 3)), (3, (4, 3, 2))],
    ids=str,
)
def test_a_width_that_is_not_the_latents_is_refused(channels: int, shape: tuple[int]) -> None:
    """Width 2 was torch's own error; width 1 and a bare task axis would broadcast."""
    adapter = LatentAdapter(LearnedStepSize(0.1, channels=channels))
    with pytest.raises(LatentError, match=rf"{channels} channels .* got shape \({shape[0]},"):
        adapter(torch.ones(shape), lambda z: z.flatten(1).sum(1) if z.ndim > 1 else 1 * z)
    named = LatentAdapter(LearnedStepSize(0.1, channels={"x": channels}))
    with pytest.raises(LatentError, match=r"leaf \['x'\] to have"):
        named(
            {"x": torch.ones(shape)},
            lambda z: z["x"].flatten(1).sum(1) if z["x"].ndim > 1 else 1 * z["x"],
        )


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 1.5}, {"channels": 2.0}], ids=str)
def test_counts_are_positive_integers(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .*positive"):
        LearnedStepSize(0.1, **settings)


def test_names_of_leaves() -> None:
    leaf = torch.ones(1)
    for latent, names in (
        (leaf, ("",)),
        ([leaf, leaf], ("[0]", "[1]")),
        ((leaf, [leaf, {"k": leaf}]), ("[0]", "[1][0]", "[1][1]['k']")),
        (Pair(leaf, {1: leaf}), (".mean", ".scale[1]")),
    ):
        leaves, structure = flatten(latent)
        assert leaf_names(structure, len(leaves)) == names
