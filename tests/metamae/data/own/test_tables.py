"""Tables: what columns are taken for, and how other rows are read by a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae import DataError
from metamae.data.description import Description
from metamae.data.fingerprint import fingerprint
from metamae.data.own import Opened, open_data, read_like
from metamae.data.own.numbers import apply_number, fit_number
from metamae.errors import ConfigError
from metamae.inputs import Tabular, Tokens
from tests.metamae.data.own.making import make_people


def open_people(source: Any, **options: Any) -> Opened:
    return open_data(source, **{"label": "ill", "ids": "person"} | options)


def written(description: Description) -> Description:
    """As a run folder gives it back."""
    return Description.from_dict(json.loads(json.dumps(description.to_dict())))


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    return make_people()


def test_every_kind_of_column_finds_its_input(people: pd.DataFrame) -> None:
    opened = open_people(people)
    row, categories = opened.dataset.inputs
    assert isinstance(row, Tabular)
    assert isinstance(categories, Tokens)
    assert row.column_names == ("age", "income", "since")
    assert row.gaps
    assert categories.length == 3  # town, smoker, site
    assert len(categories.alphabet) == (2 + 3) + (2 + 2) + (2 + 5)
    assert categories.alphabet[:2] == ("town=(missing)", "town=(rare or unknown)")
    text = "\n".join(opened.remarks)
    assert "2 of numbers, 1 of dates (as numbers), 3 of categories; 21 cells missing" in text
    assert "logarithmic scale: income" in text
    assert "classes, no (" in text


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_file_reads_as_the_frame_it_was_written_from(
    people: pd.DataFrame, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"people.{suffix}"
    if suffix == "parquet":
        people.to_parquet(path)
    else:
        people.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    opened, frame = open_people(path), open_people(people)
    assert opened.dataset.name == "people"
    assert opened.ids == frame.ids
    assert opened.dataset.inputs == frame.dataset.inputs
    assert fingerprint(opened.dataset) == fingerprint(frame.dataset)


def test_a_recipe_reads_other_rows_in_their_order(people: pd.DataFrame) -> None:
    opened = open_people(people)
    description = written(Description.of(opened.dataset))
    shuffled = people.sample(frac=1, random_state=1)
    examples = read_like(shuffled[shuffled.columns[::-1]], description, label="ill")
    assert examples.ids == shuffled["person"].tolist(), "the run's ids, without being named"
    place = [examples.ids.index(name) for name in opened.ids["test"]]
    expected = opened.dataset.need("test")
    batch = examples.partition.batch(place)
    for name, x in expected.batch(slice(None)).items():
        np.testing.assert_array_equal(batch[name].numpy(), x.numpy())
    assert examples.partition.labels is not None
    assert examples.partition.labels[place].tolist() == np.asarray(expected.labels).tolist()


def test_test_rows_teach_nothing(people: pd.DataFrame) -> None:
    """Scales, levels and curves come from the rows that are pretrained on."""
    marked = people.assign(part=["test" if row % 4 == 0 else "train" for row in range(60)])
    other = marked.copy()
    other.loc[::4, ["age", "income"]] = 1e9
    other.loc[::4, "town"] = "Kiel"
    one, two = (open_people(frame, split="part").dataset for frame in (marked, other))
    assert one.recipe == two.recipe
    assert one.inputs == two.inputs
    assert open_people(other, split="part", pretrain_on_test=True).dataset.recipe != two.recipe


def test_unknown_levels_and_gaps_have_symbols_of_their_own(people: pd.DataFrame) -> None:
    description = Description.of(open_people(people).dataset)
    rows = people.head(3).copy()
    rows["town"] = ["Rome", "Paris", None]
    examples = read_like(rows, description)
    town = examples.partition.arrays["categories"][:][:, 0]
    alphabet = description.inputs[1].alphabet  # type: ignore[attr-defined]
    assert [alphabet[symbol] for symbol in town] == [
        "town=Rome",
        "town=(rare or unknown)",
        "town=(missing)",
    ]
    assert "'town': 1 cells of rare or unknown levels (Paris)" in examples.remarks[0]


def test_other_columns_are_named(people: pd.DataFrame) -> None:
    description = Description.of(open_people(people).dataset)
    with pytest.raises(DataError, match=r"1 missing: 'age' and 1 unexpected: 'size'"):
        read_like(people.rename(columns={"age": "size"}), description)
    with pytest.raises(DataError, match="'town' is an input of the run"):
        read_like(people, description, label="town")
    with pytest.raises(DataError, match="expected a table with columns by name"):
        read_like(np.zeros((3, 4)), description)
    with pytest.raises(DataError, match=r"the run's classes.*got 'maybe'"):
        read_like(people.assign(ill="maybe"), description, label="ill")


def test_gaps_that_training_did_not_have_are_refused() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=list("abc"))
    description = Description.of(open_data(frame).dataset)
    assert not description.inputs[0].gaps  # type: ignore[attr-defined]
    frame.loc[4, "b"] = np.nan
    with pytest.raises(DataError, match="column 'b', got none in row 4"):
        read_like(frame, description)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=30, unique=True),
    st.integers(-20, 20),
    st.booleans(),
)
def test_units_do_not_matter(values: list[float], power: int, flip: bool) -> None:
    x = np.asarray([round(value, 3) for value in values])
    other = x * 2.0**power * (-1 if flip else 1)
    ours, theirs = fit_number(x), fit_number(other)
    if ours is None or theirs is None:
        assert ours is theirs
        return
    sign = -1 if flip else 1
    np.testing.assert_allclose(
        apply_number(theirs, other), sign * apply_number(ours, x), rtol=1e-4, atol=1e-4
    )


def test_tails_are_bent_and_cut() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=500), [1e6]])
    fitted = fit_number(values)
    assert fitted is not None
    assert fitted["bent"]
    standard = apply_number(fitted, values)
    assert standard[:-1].std() > 0.5, "one outlier does not flatten the rest"
    assert apply_number(fitted, np.array([1e300, -1e300])).tolist() == [8.0, -8.0]
    calm = fit_number(values[:-1])
    assert calm is not None
    assert not calm["bent"]


def test_what_teaches_nothing_is_left_out_and_said() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": range(40),
            "note": [f"some text {row}" for row in range(40)],
            "same": 3,
            "void": [None] * 40,
            "a": rng.normal(size=40),
            "b": rng.normal(size=40),
        }
    )
    opened = open_data(frame)
    assert opened.dataset.inputs[0].column_names == ("a", "b")  # type: ignore[attr-defined]
    line = next(line for line in opened.remarks if line.startswith("columns left out"))
    for name, why in (
        ("number", "counts the rows"),
        ("note", "another text in almost every row"),
        ("same", "constant"),
        ("void", "empty"),
    ):
        assert f"'{name}' ({why})" in line


def test_a_lone_category_becomes_numbers_and_a_lone_number_ranges() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=50),
            "c": rng.choice(["x", "y", "z"], 50),
            "d": rng.choice(["u", "v"], 50),
        }
    )
    (row,) = open_data(frame[["a", "c"]]).dataset.inputs
    assert row.column_names[0] == "a"  # type: ignore[attr-defined]
    assert sorted(row.column_names[1:]) == ["c=x", "c=y", "c=z"]  # type: ignore[attr-defined]
    (row,) = open_data(frame[["a", "d"]]).dataset.inputs
    assert row.tokens == 2, "of two levels one number is enough"
    opened = open_data(frame)
    (categories,) = opened.dataset.inputs
    assert categories.tokens == 3
    symbols = np.asarray(opened.dataset.need("pretrain").arrays["categories"][:])
    ranges = symbols[:, 2]
    order = np.argsort(frame["a"].to_numpy())
    assert (np.diff(ranges[order].astype(int)) >= 0).all()
    assert len(set(ranges.tolist())) == 10
    with pytest.raises(DataError, match="expected two columns or more"):
        open_data(frame[["c"]])


def test_sequences_stand_beside_other_columns() -> None:
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACGT"), 12 + row % 3)) for row in range(30)]
    frame = pd.DataFrame({"dna": letters, "gc": rng.normal(size=30), "q": rng.normal(size=30)})
    row, dna = open_data(frame).dataset.inputs
    assert row.tokens == 2
    assert isinstance(dna, Tokens)
    assert (dna.name, dna.length) == ("dna", 14)
    assert dna.alphabet == ("(unknown)", "(end)", "A", "C", "G", "T")
    opened = open_data(frame[["dna"]], kind="tokens")
    description = written(Description.of(opened.dataset))
    examples = read_like(pd.DataFrame({"dna": ["ACGTN", letters[0]]}), description)
    assert examples.partition.arrays["dna"][0][:6].tolist() == [2, 3, 4, 5, 0, 1]


def test_a_table_of_steps_is_read_as_signals_where_asked() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 60))).assign(y=[0, 1] * 10)
    opened = open_data(frame, label="y", kind="signal", token_size=(3,))
    (spec,) = opened.dataset.inputs
    assert (spec.tokens, spec.values) == (20, 3)
    examples = read_like(frame.head(2), Description.of(opened.dataset))
    assert examples.partition.batch([0])["x"].shape == (1, 1, 60)
    with pytest.raises(ConfigError, match="no token size for a table"):
        open_data(frame, label="y", token_size=(3,))


BAD = {
    "empty.csv": ("", "expected a header"),
    "header.csv": ("a,b\n", "expected rows below the header of header.csv, got none"),
    "numbers.csv": ("1,2\n3,4\n", "expected a header with names of columns .* got numbers"),
    "twice.csv": ("a,b,a\n1,2,3\n", "more than one called 'a'"),
    "ragged.csv": ("a,b\n1,2\n3\n", "expected 2 cells in line 3 of ragged.csv.* got 1"),
    "words.csv": (
        "a,b\n" + "".join(f"{n},{n * n}\n" for n in range(30)) + "oops,2\n",
        "expected numbers in column 'a', got 1 cell of another form .'oops' in row 30",
    ),
    "infinite.csv": ("a,b\n1,2\n-inf,3\n4,5\n", "finite numbers in column 'a', got -inf in row 1"),
    "bytes.csv": (b"a,b\n\xff\xfe\xfa,2\n", "save it as UTF-8"),
    "damaged.parquet": (b"PAR1nothing", "expected a table that can be read in damaged.parquet"),
    "thing.xyz": ("", "expected a path to your own data"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_has_one_clear_line(name: str, tmp_path: Path) -> None:
    content, expected = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        open_data(path)
    assert re.search(expected, str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told_with_what_is(people: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 'il'; did you mean 'ill'"):
        open_data(people, label="il")
    people.to_csv(tmp_path / "people.csv")
    with pytest.raises(DataError, match=r"did you mean 'people.csv'"):
        open_data(tmp_path / "poeple.csv")
    with pytest.raises(DataError, match="columns to drop"):
        open_data(people, drop=("what",))
    with pytest.raises(DataError, match="name it once"):
        open_data(people, label="ill", drop=("ill",))
    opened = open_data(tmp_path / "people.csv", label="ill")
    assert "a column without a name is left out (Unnamed: 0)" in opened.remarks


def test_semicolons_and_question_marks_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("a;b\n" + "".join(f"{n};{n % 3}\n" for n in (3, 1, 4, 1, 5)) + "?;2\n")
    opened = open_data(path)
    (row,) = opened.dataset.inputs
    assert row.gaps  # type: ignore[attr-defined]
    assert opened.dataset.need("pretrain").batch([5])["row"][0, 0].isnan()


@pytest.mark.parametrize("several", [False, True])
def test_truth_values_of_a_file_are_those_of_a_frame(tmp_path: Path, several: bool) -> None:
    """``true`` of a file that another program wrote is ``True`` of a data frame."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=40), "flag": rng.random(40) > 0.5})
    if several:
        frame["town"] = rng.choice(["Rome", "Oslo", "Bonn"], 40)
    written = frame.assign(flag=frame["flag"].map({True: "true", False: "false"}))
    written.to_csv(tmp_path / "t.csv", index=False)
    description = Description.of(open_data(tmp_path / "t.csv").dataset)
    first = read_like(tmp_path / "t.csv", description)
    for other in (frame, written):
        second = read_like(other, description)
        assert second.remarks == ()
        for name, values in first.partition.batch(slice(None)).items():
            assert torch.equal(values, second.partition.batch(slice(None))[name])


def test_a_level_that_no_number_stands_for_is_told() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=40), "ill": rng.choice(["no", "yes"], 40)})
    description = Description.of(open_data(frame).dataset)
    assert read_like(frame, description).remarks == ()
    frame.loc[:2, "ill"] = "perhaps"
    (remark,) = read_like(frame, description).remarks
    assert remark == (
        "column 'ill': 3 cells of rare or unknown levels (perhaps) are 0 in every number that "
        "this column became"
    )
