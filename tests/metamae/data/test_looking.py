"""Honest data pass without a word; others are told with row and place."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from metamae import DataError, load_dataset, make_config
from metamae.data import POCKET, Affine, Partition
from metamae.data.looking import ROWS, look_at
from metamae.errors import DataWarning
from metamae.inputs import Image, Signal, Tabular, Tokens
from metamae.progress import Reporter
from metamae.training import pretrain
from tests.attacks.running import TINY

SPEC = Signal(name="signal", channels=3, length=8, token_length=2, channel_names=("x", "y", "z"))


def signals(rows: int = 50) -> Any:
    return np.random.default_rng(0).normal(size=(rows, 3, 8)).astype(np.float32)


def looked(values: Any, spec: Any = SPEC, **settings: Any) -> list[str]:
    return look_at(Partition(arrays={spec.name: values}, inputs=(spec,), **settings))


@pytest.mark.parametrize("name", POCKET)
@pytest.mark.parametrize("part", ["pretrain", "train", "test"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pocket_sets_are_honest(name: str, part: Any, seed: int) -> None:
    assert look_at(load_dataset(name).need(part), seed=seed) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_names_row_channel_and_step(value: float) -> None:
    values = signals()
    values[7, 1, 3] = value
    expected = rf"got {value} in row 7 \(1 such rows in this batch; this one in channel 1 \('y'\), "
    with pytest.raises(DataError, match=expected + "at step 3"):
        looked(values)


def test_a_constant_channel() -> None:
    values = signals()
    values[:, 2] = 0.5
    (line,) = looked(values)
    assert "channel 2 ('z') is of input 'signal' constant (0.5 after scaling) in 50 rows" in line


@pytest.mark.parametrize("factor", [1e4, 20.0, 1e-5])
def test_an_absurd_scale(factor: float) -> None:
    (line,) = looked(signals() * np.float32(factor))
    assert "of input 'signal' far from a scale of 1: root mean square" in line
    assert "row " in line
    assert "standardise the data" in line
    scaling = {"signal": Affine.standardise(signals() * factor, (0, 2))}
    if factor > 1:
        assert looked(signals() * np.float32(factor), scaling=scaling) == []


def test_pixels_in_bytes() -> None:
    spec = Image(name="image", channels=1, height=4, width=4, patch=(2, 2))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
    (line,) = looked(pixels, spec)
    assert "at pixel (" in line
    assert looked(pixels, spec, scaling={"image": Affine.divide(255)}) == []


def test_a_column_a_symbol_and_rows_that_are_all_equal() -> None:
    table = np.random.default_rng(0).normal(size=(30, 3))
    table[:, 1] *= 1e5
    spec = Tabular(name="row", columns=3, column_names=("a", "size", "c"))
    (line,) = looked(table, spec)
    assert line.startswith("column 1 ('size') is of input 'row' far from")
    letters = Tokens(name="dna", length=4, vocabulary=4)
    assert "holds one symbol only, 2" in looked(np.full((9, 4), 2), letters)[0]
    assert "all 9 rows looked at are equal" in looked(np.tile([0, 1, 2, 3], (9, 1)), letters)[0]


def test_it_reads_a_sample_of_rows() -> None:
    class Counting:
        read = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, rows: Any) -> Any:
            Counting.read += len(rows)
            return signals(len(rows))

    assert looked(Counting()) == []
    assert 0 < Counting.read <= ROWS


@pytest.mark.parametrize("listening", [True, False])
def test_pretraining_says_it(listening: bool, tmp_path: Path) -> None:
    """On the console, or as a warning where nobody listens."""
    dataset = load_dataset("basic_motions")
    part = dataset.need("pretrain")
    loud = np.asarray(part.arrays["signal"][:], np.float32) * np.float32(1e4)
    changed = replace(dataset, pretrain=replace(part, arrays={"signal": loud}))
    config = make_config("basic_motions", overrides=[*TINY, "training.steps=1"], method="mae")
    if listening:
        console = Console(record=True, width=400, file=io.StringIO())
        pretrain(config, changed, tmp_path / "run", reporter=Reporter(console))
        text = "basic_motions mae #0: pretrain: warning: channel 0"
        assert text in console.export_text()
    else:
        with pytest.warns(DataWarning, match="far from a scale of 1"):
            pretrain(config, changed, tmp_path / "run")


@pytest.mark.parametrize("values", [1.7, np.nan, np.inf, -0.5])
def test_a_symbol_is_a_whole_number(values: float) -> None:
    spec = Tokens(name="dna", length=4, vocabulary=4)
    symbols = np.ones((5, 4))
    symbols[3, 2] = values
    data = Partition(arrays={"dna": symbols}, inputs=(spec,))
    with pytest.raises(DataError, match=r"in row 3 .* at position 2"):
        data.batch(slice(None))
    assert data.batch([0])["dna"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    "scaling", [(np.nan, 1.0), (0.0, 0.0), (np.inf, 1.0), (0.0, np.nan)], ids=str
)
def test_a_scaling_is_finite(scaling: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="expected a scaling with finite numbers"):
        Affine(np.array(scaling[0]), np.array(scaling[1]))
