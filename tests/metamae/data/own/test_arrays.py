"""Arrays: what a shape is taken for, layouts, scales, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae import ConfigError, DataError
from metamae.data.description import Description
from metamae.data.own import open_data, read_like
from metamae.data.own.guessing import LEAST, MOST, choose_length, choose_patch
from metamae.inputs import Image, Signal, Tabular, Tokens
from tests.metamae.data.own.making import make_signals

RNG = np.random.default_rng(0)


def spec_of(array: Any, **options: Any) -> Any:
    (spec,) = open_data(array, **options).dataset.inputs
    return spec


def test_a_shape_says_what_an_array_is() -> None:
    assert spec_of(RNG.normal(size=(20, 7))) == Tabular(
        name="x", columns=7, column_names=tuple(f"column {n}" for n in range(7))
    )
    assert spec_of(RNG.integers(0, 4, (20, 30))) == Tokens(name="x", length=30, vocabulary=4)
    assert spec_of(RNG.normal(size=(20, 3, 128))) == Signal(
        name="x", channels=3, length=128, token_length=4
    )
    assert isinstance(spec_of(RNG.normal(size=(20, 400))), Signal)
    gray = spec_of(RNG.integers(0, 255, (20, 28, 28)).astype(np.uint8))
    assert gray == Image(name="x", channels=1, height=28, width=28, patch=(4, 4))
    assert spec_of(RNG.normal(size=(9, 16, 16, 3))).channels == 3
    assert spec_of(RNG.normal(size=(9, 13, 32, 32))).channels == 13


def test_what_was_guessed_can_be_overruled() -> None:
    small = RNG.integers(0, 17, (20, 64))
    assert isinstance(spec_of(small), Tokens)
    assert isinstance(spec_of(small, kind="table"), Tabular)
    assert spec_of(small, kind="signal", token_size=(8,)).tokens == 8
    line = open_data(small).remarks[0]
    assert "taken for sequences of symbols (tokens) by its shape" in line
    assert "--as" in line
    with pytest.raises(ConfigError, match="got 'tabel'; did you mean 'table'"):
        open_data(small, kind="tabel")
    with pytest.raises(ConfigError, match="expected a folder of sounds"):
        open_data(small, kind="audio")
    with pytest.raises(DataError, match=r"expected x of shape .N, L. for a table"):
        open_data(RNG.normal(size=(5, 3, 20)), kind="table")


def test_channels_last_are_moved_first() -> None:
    x = RNG.normal(size=(20, 50, 3))
    first, last = open_data(np.moveaxis(x, 2, 1)), open_data(x)
    assert first.dataset.inputs == last.dataset.inputs
    one, two = (o.dataset.need("pretrain").batch([0, 5])["x"] for o in (first, last))
    assert torch.equal(one, two)
    assert "channels last" in last.remarks[0]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 3000))
def test_there_are_16_to_64_tokens_where_there_can_be(length: int) -> None:
    step = choose_length(length, ())
    count = length // step
    assert count >= 2
    if length >= 2 * LEAST:
        assert LEAST <= count <= 1.1 * MOST
    assert length - count * step <= 0.1 * length


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 300), st.integers(2, 300))
def test_patches_are_square_and_within_the_image(height: int, width: int) -> None:
    side, same = choose_patch(height, width, ())
    assert side == same <= min(height, width)
    assert (height // side) * (width // side) >= 1


def test_edges_that_fill_no_token_are_cut_and_said() -> None:
    x = RNG.normal(size=(10, 2, 101))
    opened = open_data(x, token_size=(10,))
    assert opened.dataset.inputs[0].tokens == 10
    assert "the last 1 steps fill no token and are cut off" in opened.remarks[0]
    image = np.arange(10 * 9 * 9, dtype=np.float32).reshape(10, 9, 9)
    opened = open_data(image, kind="image", token_size=(4, 4))
    kept = opened.dataset.need("pretrain").arrays["x"][:]
    assert np.array_equal(np.asarray(kept)[:, 0], image[:, :8, :8])
    with pytest.raises(ConfigError, match="expected a token size up to 101, got 102"):
        open_data(x, token_size=(102,))


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 0.0), (2.0**-30, 0.0), (2.0**40, 0.0)])
def test_units_do_not_matter(unit: float, offset: float) -> None:
    x = RNG.normal(size=(20, 2, 40))
    plain, other = (open_data(a).dataset.need("pretrain") for a in (x, x * unit + offset))
    torch.testing.assert_close(
        other.batch([1, 2])["x"], plain.batch([1, 2])["x"], atol=1e-5, rtol=1e-5
    )


def test_a_far_offset_costs_no_digits() -> None:
    """As float32 the examples would be equal."""
    x = RNG.normal(size=(20, 2, 40))
    plain, other = (open_data(a).dataset.need("pretrain") for a in (x, x * 1e-3 + 1e6))
    torch.testing.assert_close(
        other.batch([1, 2])["x"], plain.batch([1, 2])["x"], atol=1e-5, rtol=1e-5
    )


def test_scaling_comes_from_the_rows_that_are_pretrained_on() -> None:
    data = make_signals()
    parts = np.array(["train"] * 18 + ["test"] * 6)
    opened = open_data(data | {"part": parts}, split="part")
    scaling = opened.dataset.need("pretrain").scaling["x"]
    ours = data["x"][:18]
    np.testing.assert_allclose(np.asarray(scaling.mean).ravel(), ours.mean((0, 2)), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(scaling.scale).ravel(), ours.std((0, 2)), rtol=1e-4)


def test_other_arrays_are_read_in_their_order(tmp_path: Path) -> None:
    data = make_signals()
    np.savez(tmp_path / "signals.npz", **data)
    opened = open_data(tmp_path / "signals.npz")
    description = Description.from_dict(
        json.loads(json.dumps(Description.of(opened.dataset).to_dict()))
    )
    examples = read_like({"x": data["x"][::-1]}, description)
    assert examples.ids == [str(row) for row in range(24)]
    rows = [23 - int(row) for row in opened.ids["test"]]
    expected = opened.dataset.need("test").batch(slice(None))["x"]
    assert torch.equal(examples.partition.batch(rows)["x"], expected)
    labelled = read_like(tmp_path / "signals.npz", description, label="y")
    assert np.asarray(labelled.partition.labels).tolist() == data["y"].tolist()
    assert len(read_like(data["x"], description).partition) == 24, "one array needs no name"
    with pytest.raises(DataError, match=r"expected x of shape \(N, 2, 40\).* got \(24, 2, 39\)"):
        read_like(data["x"][..., :39], description)
    with pytest.raises(DataError, match="expected arrays x in the arrays"):
        read_like({"a": data["x"], "b": data["x"]}, description)


def test_a_table_of_numbers_may_have_gaps() -> None:
    x = RNG.normal(size=(30, 4))
    x[3, 1] = np.nan
    opened = open_data(x)
    assert opened.dataset.inputs[0].gaps  # type: ignore[attr-defined]
    assert "1 cells missing" in opened.remarks[0]
    full = Description.of(open_data(RNG.normal(size=(30, 4))).dataset)
    with pytest.raises(DataError, match="column 1 of x, got none in row 3"):
        read_like(x, full)


def test_a_file_stays_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_signals()["x"])
    rows = open_data(tmp_path / "x.npy").dataset.need("pretrain").arrays["x"]
    assert isinstance(rows.array.array, np.memmap)  # type: ignore[attr-defined]


def test_several_arrays_are_several_inputs() -> None:
    data = make_signals() | {"row": RNG.normal(size=(24, 5))}
    opened = open_data(data)
    assert [type(spec).__name__ for spec in opened.dataset.inputs] == ["Signal", "Tabular"]
    examples = read_like({key: data[key] for key in ("row", "x")}, Description.of(opened.dataset))
    assert set(examples.partition.batch([0])) == {"x", "row"}


def bad_arrays() -> dict[str, tuple[Any, str]]:
    nan = RNG.normal(size=(10, 2, 20))
    nan[4, 1, 3] = np.nan
    ragged = np.empty(3, object)
    ragged[:] = [np.zeros(3), np.zeros(4), np.zeros(5)]
    return {
        "nan": (nan, "expected finite values in x, got others in row 4"),
        "infinite": (np.where(np.eye(5) > 0, np.inf, 1.0), "expected finite numbers in x, got inf"),
        "ragged": (ragged, "rows of different length"),
        "texts": (np.array([["a", "b"]] * 4), "expected numbers in x, got values of type"),
        "vector": (np.arange(5.0), "expected two axes or more"),
        "number": (np.array(3.0), "examples along the first axis"),
        "empty": (np.zeros((0, 4)), "expected rows in the array, got none"),
        "five": (np.zeros((2, 2, 2, 2, 2)), "2 to 4 axes"),
        "lengths": ({"x": np.zeros((5, 3)), "z": np.zeros((4, 3))}, "as many rows"),
        "constant": (np.ones((9, 4)), "two columns or more that vary"),
        "object": (object(), "got object"),
    }


@pytest.mark.parametrize("name", bad_arrays())
def test_a_bad_array_has_one_clear_line(name: str) -> None:
    array, expected = bad_arrays()[name]
    with pytest.raises(DataError, match=expected):
        open_data(array)


def test_objects_in_a_file_are_never_loaded(tmp_path: Path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [[1], [1, 2]]
    np.save(tmp_path / "x.npy", ragged, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=ragged, allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(b"\x93NUMPY nothing")
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="rows of different length"):
            open_data(tmp_path / name)
    with pytest.raises(DataError, match="damaged"):
        open_data(tmp_path / "y.npy")
