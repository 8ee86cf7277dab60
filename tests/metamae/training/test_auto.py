"""The preset auto: sizes by the data, steps by a budget, and the same bits again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metamae import ConfigError, DataError, load_dataset
from metamae.config import METHODS, Config
from metamae.config.auto import auto_values
from metamae.data.own import open_data
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.model.masking import Masking
from metamae.training import auto, pretrain
from metamae.training.auto import auto_config
from tests.tiny import SIZES

TABLE = Tabular(name="row", columns=10)
LETTERS = Tokens(name="letters", length=50, vocabulary=4)
WATCH = Signal(name="watch", channels=3, length=128, token_length=4)
PICTURE = Image(name="picture", channels=3, height=32, width=32, patch=(4, 4))


@pytest.mark.parametrize(
    ("inputs", "step_size", "mask_ratio", "rate"),
    [
        ((TABLE,), 20.0, 0.5, 5e-4),
        ((LETTERS,), 0.1, 0.5, 5e-4),
        ((TABLE, LETTERS), 0.1, 0.5, 5e-4),
        ((WATCH,), 20.0, 0.5, 1e-3),
        ((PICTURE,), 20.0, 0.5, 1e-3),  # 64 tokens
        ((PICTURE, LETTERS), 0.1, 0.5, 5e-4),
        ((replace(PICTURE, patch=(2, 2)),), 20.0, 0.75, 1e-3),
    ],
)
def test_settings_follow_the_kind_of_input(
    inputs: Inputs, step_size: float, mask_ratio: float, rate: float
) -> None:
    values = auto_values(inputs, 5000, 300)
    assert values["adaptation"]["step_size"] == step_size
    assert values["masking"]["mask_ratio"] == mask_ratio
    assert values["training"]["learning_rate"] == rate
    assert values["training"]["warmup_steps"] == 30
    assert Config.from_dict({"dataset": "x"} | values).training.schedule == "cosine"


@pytest.mark.parametrize(
    ("inputs", "method", "weight"),
    [
        ((WATCH,), "metamae", 0.0),
        ((WATCH,), "mae_contrast", 0.5),
        ((LETTERS,), "metamae", 0.1),
        ((LETTERS,), "mae_contrast", 0.1),
    ],
)
def test_the_contrast_is_left_out_where_it_cost_accuracy(
    inputs: Inputs, method: str, weight: float
) -> None:
    """MetaMAE's on real numbers, and no other's."""
    assert auto_values(inputs, 5000, 300, method)["contrast"]["weight"] == weight


def test_an_input_of_few_tokens_keeps_some_visible() -> None:
    """Three quarters of three tokens would leave nothing of them to see."""
    few = replace(WATCH, name="few", length=12)
    for inputs, ratio in (((replace(WATCH, length=400), few), 0.5), ((WATCH, PICTURE), 0.75)):
        values = auto_values(inputs, 5000, 300)
        assert values["masking"]["mask_ratio"] == ratio
        masking = Masking(inputs, ratio, values["masking"]["nearby_ratio"])
        assert min(masking.support_counts) > 0


@pytest.mark.parametrize(
    ("inputs", "scale"),
    [
        ((WATCH,), "positions"),
        ((TABLE, PICTURE), "positions"),
        ((LETTERS,), "published"),
        ((PICTURE, LETTERS), "published"),
    ],
)
def test_contents_of_real_numbers_are_as_large_as_positions(inputs: Inputs, scale: str) -> None:
    values = auto_values(inputs, 5000, 300)
    assert values["encoder"]["content_scale"] == scale
    assert Config.from_dict({"dataset": "x"} | values).encoder.content_scale == scale


def test_sizes_follow_the_rows() -> None:
    sizes = [auto_values((TABLE,), rows, 10) for rows in (10, 300, 5000, 10**7)]
    assert [values["training"]["batch_size"] for values in sizes] == [2, 64, 128, 128]
    assert [values["encoder"]["width"] for values in sizes] == [64, 64, 128, 192]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_configuration(method: str) -> None:
    config = auto_config(load_dataset("tabular"), method=method, steps=30, seed=4)
    assert (config.method, config.seed, config.preset) == (method, 4, "auto")
    assert config.training.steps == (0 if method == "random" else 30)


def test_a_budget_becomes_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "seconds_a_step", lambda *_: 0.1)
    data = load_dataset("digits")
    assert auto_config(data).training.steps == 3000
    assert auto_config(data, minutes=0.123).training.steps == 73
    assert auto_config(data, minutes=2.39).training.steps == 1400, "two digits"
    assert auto_config(data, minutes=1e-6).training.steps == auto.LEAST
    named = auto_config(data, minutes=9, overrides=["training.steps=77"])
    assert (named.training.steps, named.training.warmup_steps) == (77, 7)


def test_a_few_steps_are_timed_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = auto_config(load_dataset("basic_motions"), minutes=0.01, overrides=SIZES)
    assert auto.LEAST <= config.training.steps <= auto.MOST
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), True, "5"])
def test_an_impossible_budget_is_refused(minutes: float) -> None:
    with pytest.raises(ConfigError, match="expected a budget of minutes above 0"):
        auto_config(load_dataset("digits"), minutes=minutes)


def test_a_single_row_is_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="expected two rows or more of 'data'"):
        auto_config(open_data(np.random.default_rng(0).normal(size=(1, 3, 40))).dataset, steps=3)


def test_the_same_configuration_has_the_same_bits(tmp_path: Path) -> None:
    """On own data in other units too: powers of two cost no digits."""
    x = np.random.default_rng(0).normal(size=(20, 2, 40))
    one, two = open_data(x).dataset, open_data(x * 2.0**-20).dataset
    config = auto_config(one, steps=3, overrides=SIZES)
    assert config == auto_config(two, steps=3, overrides=SIZES)
    losses = [
        pretrain(config, data, tmp_path / name).history.series["loss"]
        for name, data in (("a", one), ("b", one), ("c", two))
    ]
    assert losses[0] == losses[1] == losses[2]
