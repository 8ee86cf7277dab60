"""LFR from its defining equation, one example and one network at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamae import load_dataset, make_config
from metamae.config.baselines import LFRConfig
from metamae.errors import ConfigError
from metamae.evaluation.features import extract_features
from metamae.inputs import Inputs, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.lfr import LFR, RandomProjectors, most_diverse
from metamae.methods.method import NoDraw
from metamae.training import pretrain
from metamae.training.run_folder import CHECKPOINT, load_method
from tests.metamae.methods.test_baselines import KINDS, ROW, TINY, WORDS, batch_of, built, config_of

SMALL = LFRConfig(projectors=3, candidates=5, hidden=7, out=4, redundancy=0.3)


def lfr(inputs: Inputs = (ROW,), **changes: Any) -> LFR:
    method = built("lfr", inputs, lfr=replace(SMALL, **changes))
    assert isinstance(method, LFR)
    return method


def flat_example(method: LFR, batch: dict[str, Tensor], example: int) -> list[float]:
    """Raw numbers of an example token after token, symbols as their random rows."""
    values: list[float] = []
    for number, spec in enumerate(method.network.inputs):
        for token in spec.patchify(batch[spec.name])[example]:
            table = getattr(method.projectors, f"table_{number}", None)
            row = table[int(token)] if isinstance(spec, Tokens) else token
            values += row.tolist()
    return values


def target(method: LFR, x: list[float], network: int) -> np.ndarray:
    weights = method.projectors
    parts = (weights.first, weights.bias, weights.second)
    first, bias, second = (part[network].numpy() for part in parts)
    hidden = [max(0.0, math.fsum(x * first[:, h]) + bias[h]) for h in range(len(bias))]
    return np.array([math.fsum(hidden * second[:, o]) for o in range(second.shape[1])])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_equation(kind: str) -> None:
    """Cosines of every prediction with every target, in loops."""
    inputs = KINDS[kind]
    method, batch = lfr(inputs), batch_of(inputs)
    features = method.network.features(batch)
    total = 0.0
    for k in range(3):
        predict = method.predictors[k]
        for i in range(4):
            hidden = (predict[0].weight @ features[i] + predict[0].bias).clamp(min=0)
            p = (predict[2].weight @ hidden + predict[2].bias).detach().numpy()
            for j in range(4):
                y = target(method, flat_example(method, batch, j), k)
                lengths = math.sqrt((p**2).sum() * (y**2).sum())
                cosine = (p * y).sum() / lengths if lengths else 0.0  # no unit fires
                total += (1 - cosine) ** 2 if i == j else 0.3 * cosine**2
    result = method(batch, NoDraw(4))
    assert result.loss.item() == pytest.approx(total / (4 * 3), rel=1e-9)
    terms = result.terms
    assert result.loss.item() == pytest.approx(
        terms["mismatch"].item() + 0.3 * terms["redundancy"].item(), rel=1e-12
    )


def test_gradients_reach_encoder_and_predictors_and_no_random_network() -> None:
    method = lfr((ROW, WORDS))
    frozen = list(method.projectors.buffers())
    assert len(frozen) == 4  # two layers, a bias, a table of symbols
    assert not list(method.projectors.parameters())
    method(batch_of((ROW, WORDS)), NoDraw(4)).loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert not any(buffer.requires_grad for buffer in frozen)


def test_random_networks_are_a_function_of_the_seed_alone() -> None:
    """Not of the global generator, nor of the default type; another seed draws others."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = (RandomProjectors((ROW, WORDS), SMALL, seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same = RandomProjectors((ROW, WORDS), SMALL, 0)
    assert all(map(torch.equal, one.buffers(), same.buffers()))
    assert not any(map(torch.equal, one.buffers(), two.buffers()))
    torch.set_default_dtype(torch.float64)
    try:
        wide = RandomProjectors((ROW, WORDS), SMALL, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    pairs = zip(one.buffers(), wide.buffers(), strict=True)
    assert all(torch.equal(a, b.float()) for a, b in pairs)
    assert wide.first.dtype == torch.float64
    assert one.state_dict() == {}  # drawn again, whatever the sizes of the inputs


@settings(deadline=None, max_examples=30)
@given(
    items=st.integers(1, 7),
    size=st.integers(1, 9),
    count=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_networks_are_chosen_by_the_determinant(
    items: int, size: int, count: int, seed: int
) -> None:
    """Each choice is the best single addition to those before, by determinants in full."""
    count = min(count, items, size)  # beyond the rank all determinants are zero
    rows = np.random.default_rng(seed).normal(size=(items, size))
    kernel = rows @ rows.T
    chosen = most_diverse(torch.from_numpy(kernel), count)
    assert len(set(chosen)) == count
    for n in range(count):
        before = list(chosen[:n])
        found, *others = (
            np.linalg.det(kernel[np.ix_(part, part)])
            for part in ([*before, item] for item in (chosen[n], *range(items)))
        )
        assert found >= max(others) * (1 - 1e-6) - 1e-12


def test_repeated_networks_are_chosen_last_and_never_twice() -> None:
    kernel = torch.ones(3, 3)
    kernel[2, :2] = kernel[:2, 2] = 0.5
    assert most_diverse(kernel, 3) == (0, 2, 1)


def test_chosen_networks_are_more_diverse_than_the_first() -> None:
    """By the determinant of what two networks see alike."""

    def determinant(chosen: list[int]) -> float:
        candidates = replace(SMALL, projectors=20, candidates=20)
        every = RandomProjectors((ROW,), candidates, 0)
        x = torch.randn(64, 9, 1, generator=torch.Generator().manual_seed(7))
        outputs = every({"row": x}).double()
        places = [every.chosen.index(n) for n in chosen]
        rows = torch.nn.functional.normalize(outputs[:, places], dim=-1)
        seen = torch.einsum("ikp,jkp->kij", rows, rows).flatten(1)
        seen = torch.nn.functional.normalize(seen, dim=1)
        return float(torch.linalg.det(seen @ seen.T))

    chosen = RandomProjectors((ROW,), replace(SMALL, candidates=20), 0).chosen
    assert determinant(list(chosen)) > 2 * determinant([0, 1, 2])


def test_a_run_resumes_to_the_same_bits_and_its_features_change(tmp_path: Path) -> None:
    data = load_dataset("captioned")
    own = [*TINY, "baseline.lfr.hidden=8", "encoder.dropout=0.1"]

    def config(steps: int) -> Any:
        return make_config("captioned", method="lfr", overrides=[*own, f"training.steps={steps}"])

    whole = pretrain(config(4), data, tmp_path / "whole").method
    pretrain(config(2), data, tmp_path / "two")
    resumed = pretrain(config(4), data, tmp_path / "two", resume=True).method
    state, again = whole.state_dict(), resumed.state_dict()
    assert state.keys() == again.keys()
    assert not any("projectors" in key for key in state)
    assert all(torch.equal(state[key], again[key]) for key in state)
    loaded = load_method(tmp_path / "two" / CHECKPOINT, data.inputs)
    assert isinstance(loaded, LFR)
    assert all(map(torch.equal, loaded.projectors.buffers(), whole.projectors.buffers()))
    features = extract_features(whole, data.test)
    assert torch.equal(extract_features(loaded, data.test), features)
    start = build_method(config(4), data.inputs)
    assert (extract_features(start, data.test) - features).abs().max() > 1e-4


def test_weights_are_read_for_examples_of_another_length() -> None:
    state = build_method(config_of("lfr"), (ROW,)).state_dict()
    longer = build_method(config_of("lfr"), (replace(ROW, columns=12),))
    longer.load_state_dict(state)
    assert longer.features({"row": torch.zeros(2, 12)}).shape == (2, 16)


def test_what_cannot_work_is_refused() -> None:
    config = config_of("lfr")
    single = replace(config, training=replace(config.training, batch_size=1))
    with pytest.raises(ConfigError, match=r"batch_size >= 2 for lfr.*got 1"):
        build_method(single, (Tabular(name="row", columns=3),))
    with pytest.raises(ConfigError, match=r"candidates >= baseline.lfr.projectors, got 2"):
        LFRConfig(projectors=3, candidates=2)
    for override, named in (
        ("learn.settings=[step_size]", "no learn.settings with method=lfr"),
        ("masking.rule=attention", "masking.rule=random, or a method among"),
        ("target.kind=teacher", "target.kind=values, or a method among"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_config("sensors", method="lfr", overrides=[override])
