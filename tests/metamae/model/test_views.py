"""Randomised quantisation against its definition, number by number, and in the methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metalearn.contrast import nt_xent
from metamae import load_dataset, make_config
from metamae.config import Config
from metamae.errors import ConfigError
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.methods import MetaMAE, build_method
from metamae.methods.mae_contrast import ContrastiveMAE
from metamae.methods.metamae import refine
from metamae.model.views import VIEWS, RandomQuantization, ViewedSplit
from metamae.training import pretrain
from tests.tiny import SIZES

INPUTS: Inputs = (
    Signal(name="signal", channels=2, length=6, token_length=2),
    Image(name="image", channels=3, height=4, width=2, patch=(2, 2)),
    Tabular(name="row", columns=5),
)


def batch_of(size: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "signal": torch.randn(size, 2, 6, generator=random, dtype=torch.float64),
        "image": torch.randn(size, 3, 4, 2, generator=random, dtype=torch.float64),
        "row": torch.randn(size, 5, generator=random, dtype=torch.float64),
    }


def by_definition(numbers: list[float], noise: list[float], bins: int) -> list[float]:
    low, high = min(numbers), max(numbers)
    edges = [low, *(low + (high - low) * u for u in sorted(noise[: bins - 1])), high]
    values = [edges[k] + (edges[k + 1] - edges[k]) * noise[bins - 1 + k] for k in range(bins)]
    found = []
    for x in numbers:
        k = max(k for k in range(bins) if edges[k] <= x)
        found.append(values[k])
    return found


@settings(max_examples=25, deadline=None)
@given(bins=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_every_number_becomes_that_of_its_bin(bins: int, seed: int) -> None:
    view, batch = RandomQuantization(INPUTS, bins), batch_of(2, seed)
    noise = view.draw(2, torch.Generator().manual_seed(seed))
    assert noise.shape == (2, 2 + 3 + 1, 2 * bins - 1)
    found = view(batch, noise)
    assert {name: x.shape for name, x in found.items()} == {n: x.shape for n, x in batch.items()}
    for b in range(2):
        rows = [*batch["signal"][b], *batch["image"][b].flatten(1), batch["row"][b]]
        quantised = [*found["signal"][b], *found["image"][b].flatten(1), found["row"][b]]
        for c, (row, result) in enumerate(zip(rows, quantised, strict=True)):
            expected = by_definition(row.tolist(), noise[b, c].double().tolist(), bins)
            assert result.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_constant_channel_stays_and_examples_do_not_mix() -> None:
    view = RandomQuantization(INPUTS[2:], 4)
    noise = view.draw(3, torch.Generator().manual_seed(1))
    assert view({"row": torch.full((3, 5), 2.5)}, noise)["row"].unique().tolist() == [2.5]
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    whole = view({"row": rows}, noise)["row"]
    assert torch.equal(view({"row": rows[1:]}, noise[1:])["row"], whole[1:])


def test_gaps_of_a_table_stay_gaps_and_count_for_nothing() -> None:
    """Of the other cells the result is that of a row without them; a row of gaps has no range."""
    row = torch.tensor([[3.0, torch.nan, -1.0, 0.5, torch.nan], [torch.nan] * 5])
    view = RandomQuantization((Tabular(name="row", columns=5, gaps=True),), 3)
    noise = view.draw(2, torch.Generator().manual_seed(4))
    found = view({"row": row}, noise)["row"]
    assert torch.equal(found.isnan(), row.isnan())
    expected = by_definition([3.0, -1.0, 0.5], noise[0, 0].double().tolist(), 3)
    assert found[0][~row[0].isnan()].tolist() == pytest.approx(expected, abs=1e-6)


def config_of(method: str, *overrides: str) -> Config:
    own = ("contrast.view=quantization", "training.batch_size=6", *overrides)
    return make_config("basic_motions", method=method, overrides=[*SIZES, *own])


@pytest.mark.parametrize("name", ["mae_contrast", "metamae"])
def test_the_contrast_is_with_the_quantised_example(name: str) -> None:
    data = load_dataset("basic_motions")
    config = config_of(name, "contrast.weight=0.7", "contrast.bins=3")
    method = build_method(config, data.inputs)
    assert isinstance(method, ContrastiveMAE | MetaMAE)
    split = method.draw(6, torch.Generator().manual_seed(0))
    assert isinstance(split, ViewedSplit)
    batch = data.need("pretrain").batch(slice(0, 6))
    result = method(batch, split)
    network, targets = method.network, method.network.tokenizer.targets(batch)
    view = RandomQuantization(data.inputs, 3)
    changed = network.encode(network.visible_tokens(view(batch, split.noise), split))
    if isinstance(method, MetaMAE):
        contrast = method.meta.contrast
        other = refine(network, method.meta.adapter, batch, split).refined
        query = network.query_loss(other, targets, split).mean()
        first, second = changed, other
    else:
        contrast = method.contrast
        other = network.encode(network.visible_tokens(batch, split))
        losses = [network.query_loss(z, targets, split).mean() for z in (other, changed)]
        query = (losses[0] + losses[1]) / 2
        first, second = other, changed
    assert contrast is not None
    rows = [contrast.projector(z[:, 1:].mean(1)) for z in (first, second)]
    expected = query + 0.7 * nt_xent(rows[0], rows[1], config.contrast.temperature)
    torch.testing.assert_close(result.loss, expected)
    assert set(result.terms) == {"query", "contrast"}
    moved = split.to("cpu")[1:4]
    assert torch.equal(moved.noise, split.noise[1:4])


def test_a_run_in_pieces_ends_as_the_whole(tmp_path: Path) -> None:
    data, ends = load_dataset("basic_motions"), []
    for size in (0, 2):
        config = config_of("metamae", "training.steps=2", f"training.micro_batch={size}")
        pretrain(config, data, tmp_path / str(size))
        state = torch.load(tmp_path / str(size) / "checkpoint.pt", weights_only=True)["model"]
        ends.append(state)
    for name, value in ends[0].items():
        if "num_batches_tracked" not in name and "running" not in name:
            torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=2e-5)


def test_the_views_are_those_that_configurations_may_name() -> None:
    for name in VIEWS:
        make_config("sensors", overrides=[f"contrast.view={name}"])
    for overrides, text in (
        (["contrast.view=blurred"], f"contrast.view among {', '.join(VIEWS)}, got 'blurred'"),
        (["method=mae"], "a method among mae_contrast, metamae, random, got 'quantization with"),
        (["masking.rule=hard"], "masking.rule=random with contrast.view=quantization"),
        (["learn.settings=[step_size]"], "contrast.view=own where learn.settings names some"),
        (["contrast.weight=0"], "contrast.weight > 0 where contrast.view is not own"),
        (["contrast.bins=1"], "contrast.bins >= 2"),
    ):
        with pytest.raises(ConfigError) as fault:
            make_config("sensors", overrides=["contrast.view=quantization", *overrides])
        assert text in str(fault.value)


def test_symbols_are_refused_by_name() -> None:
    words = (Tokens(name="words", length=8, vocabulary=4),)
    with pytest.raises(ConfigError, match=r"got symbols \('words'\); use contrast.view=own"):
        build_method(config_of("metamae"), words)
