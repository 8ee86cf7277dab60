"""Every shortcut changes no number: compared with the straight version in float64."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn import Unrolled, blockwise, recomputed_gelu
from metamae.config.schema import Config
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.model import transformer
from metamae.randomness import generator
from tests.metamae.model.straight import straighten

SHAPES: list[Inputs] = [
    (Signal(name="signal", channels=2, length=20, token_length=2),),
    (Image(name="image", channels=1, height=6, width=8, patch=(2, 2)),),
    (Tabular(name="row", columns=7),),
    (Tokens(name="words", length=9, vocabulary=5),),
    (
        Image(name="image", channels=1, height=4, width=4, patch=(2, 1)),
        Tokens(name="words", length=6, vocabulary=5),
    ),
]


def method_of(
    inputs: Inputs,
    depth: int,
    ratio: float,
    nearby: float,
    *,
    decoder_attention: str = "self",
    **adaptation: Any,
) -> MAE:
    """Tiny and float64, away from zero biases; a large step, so that curvature matters."""
    config = Config.from_dict(
        {
            "dataset": "test",
            "encoder": {"width": 16, "depth": 1, "heads": 2},
            "decoder": {
                "width": 8,
                "depth": depth,
                "heads": 2,
                "attention": decoder_attention,
            },
            "masking": {"mask_ratio": ratio, "nearby_ratio": nearby},
            "adaptation": {"step_size": 5.0} | adaptation,
            "contrast": {"weight": 0.3, "hidden": 8, "out": 4},
        }
    )
    method = build_method(config, inputs).double()
    noise = generator(0, "noise")
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise).double())
    return method


def batch_of(inputs: Inputs, size: int) -> dict[str, Tensor]:
    draw, batch = generator(1, "batch"), {}
    for spec in inputs:
        if isinstance(spec, Tokens):
            batch[spec.name] = torch.randint(spec.vocabulary, (size, spec.length), generator=draw)
            continue
        cut = torch.randn(size, spec.tokens, spec.values, generator=draw).double()
        batch[spec.name] = spec.unpatchify(cut)
    return batch


def gradient(method: MAE, batch: dict[str, Tensor], split: Any) -> dict[str, Tensor]:
    names, parameters = zip(*method.named_parameters(), strict=True)
    loss = method(batch, split).loss
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True)) | {"loss": loss.detach()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    inputs=st.sampled_from(SHAPES),
    depth=st.integers(0, 3),
    ratio=st.sampled_from([0.3, 0.5, 0.7]),
    nearby=st.sampled_from([0.0, 0.1, 1.0]),
    size=st.integers(2, 4),
    extra=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_shortcuts_and_spare_slots_change_nothing(
    inputs: Inputs, depth: int, ratio: float, nearby: float, size: int, extra: int, seed: int
) -> None:
    """Loss, gradient, and its second-order part alone: MetaMAE's gradient less first-order's."""
    batch, found = batch_of(inputs, size), []
    for straight in (False, True):
        parts = []
        for policy in ("unrolled", "first_order"):
            method = method_of(inputs, depth, ratio, nearby, differentiation=policy)
            split = method.draw(size, generator(seed, "split"))
            if straight:
                straighten(method.network)
            else:
                spare = zip(split.slots, method.network.masking.query_counts, strict=True)
                more = split.in_slots(tuple(min(n + extra, most) for n, most in spare))
                assert more is not None
                split = more
            parts.append(gradient(method, batch, split))
        whole, first = parts
        found.append((whole, {name: whole[name] - first[name] for name in whole}))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    if depth:
        assert max(part.abs().max() for part in found[1][1].values()) > 1e-4


@pytest.mark.parametrize("inputs", SHAPES, ids=lambda inputs: inputs[0].name)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 8])
def test_chunks_change_nothing(inputs: Inputs, chunk_size: int) -> None:
    """With slots looked up in each chunk, and with those of the draw."""
    batch = batch_of(inputs, 4)
    whole = method_of(inputs, 2, 0.5, 0.3)
    parts = method_of(inputs, 2, 0.5, 0.3, differentiation="checkpointed", chunk_size=chunk_size)
    split = whole.draw(4, generator(0, "split"))
    for draw in (split, replace(split, slots=())):
        found, expected = gradient(parts, batch, draw), gradient(whole, batch, draw)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("attention", ["self", "cross"])
@pytest.mark.parametrize("policy", ["unrolled", "checkpointed"])
@pytest.mark.parametrize("inputs", [SHAPES[0], SHAPES[4]], ids=["signal", "media"])
def test_what_is_recomputed_changes_nothing(
    inputs: Inputs, policy: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cheap results, and attention in blocks of a query, beside a step that keeps everything."""
    settings: dict[str, Any] = {"steps": 2, "decoder_attention": attention}
    kept = method_of(inputs, 2, 0.5, 0.3, **settings)
    assert isinstance(kept, MetaMAE)
    kept.meta.adapter.differentiation = Unrolled()
    lean = method_of(inputs, 2, 0.5, 0.3, differentiation=policy, **settings)
    batch, split = batch_of(inputs, 3), kept.draw(3, generator(0, "split"))
    expected = gradient(kept, batch, split)
    if policy == "unrolled":  # the same to the bit, where the maps are small
        found = gradient(lean, batch, split)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    monkeypatch.setattr(transformer, "RECOMPUTED_FROM", 0)
    monkeypatch.setattr(transformer, "plain_attention", None)
    monkeypatch.setattr(blockwise, "BLOCK", 8)
    torch.testing.assert_close(gradient(lean, batch, split), expected, rtol=1e-8, atol=1e-11)


def test_the_inner_step_keeps_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of encoder and outer decoder are kept, as of any network."""
    made: list[weakref.ref[Any]] = []

    def watched(values: Tensor) -> Tensor:
        result = recomputed_gelu(values)
        made.append(weakref.ref(result.untyped_storage()))
        return result

    monkeypatch.setattr(transformer, "recomputed_gelu", watched)
    method = method_of(SHAPES[0], 2, 0.5, 0.3)
    batch, split = batch_of(SHAPES[0], 3), method.draw(3, generator(0, "split"))
    loss = method(batch, split).loss
    alive = [one() is not None for one in made]
    assert alive == [True, False, False, True, True]  # encoder, inner decoder, outer decoder
    loss.backward()


@pytest.mark.parametrize("inputs", SHAPES, ids=lambda inputs: inputs[0].name)
def test_the_bound_of_slots_holds_and_is_near(inputs: Inputs) -> None:
    """Hardly a batch needs more, and a large share of misses is had with fewer."""
    masking = method_of(inputs, 1, 0.5, 0.1).network.masking
    bound = masking.slot_bound(32)
    splits = [masking.draw(32, generator(seed, "split")) for seed in range(50)]
    assert all(split.in_slots(bound) is not None for split in splits)
    assert all(split.in_slots(bound).slots == bound for split in splits)  # type: ignore[union-attr]
    assert bound <= masking.query_counts
    assert masking.slot_bound(32, misses=10.0)[0] < bound[0]


def test_too_few_slots_are_noticed() -> None:
    masking = method_of(SHAPES[0], 1, 0.5, 1.0).network.masking
    split = masking.draw(4, generator(0, "split"))
    assert split.in_slots((split.slots[0] - 1,)) is None
    assert masking.slot_bound(4) == masking.query_counts  # with certainty, every one may be drawn
