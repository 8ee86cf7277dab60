"""Labels become tasks, rows become parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae import DataError
from metamae.data.description import Description
from metamae.data.own import open_data, read_like
from metamae.data.own.facts import Facts
from metamae.data.own.splitting import split_rows
from metamae.data.own.targets import read_targets
from tests.metamae.data.own.making import make_signals


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([1, 2, 10, 2], "classification", ("1", "2", "10")),
        ([1.0, 0.0, None], "classification", ("0", "1")),
        ([True, False], "classification", ("False", "True")),
        (["b", "a", ""], "classification", ("a", "b")),
        (list(np.arange(50) / 2), "regression", ()),
        (list(range(50)), "regression", ()),
        (list(range(30)) * 10, "classification", tuple(map(str, range(30)))),
    ],
)
def test_labels_are_classes_or_numbers(
    values: list[object], kind: str, classes: tuple[str, ...]
) -> None:
    targets = read_targets(values, "y")
    assert (targets.task.kind, targets.task.classes) == (kind, classes)
    for value, code, there in zip(values, targets.codes, targets.there, strict=True):
        assert there == (value not in (None, ""))
        if kind == "regression":
            assert code == value
        elif there:
            name = str(int(value)) if isinstance(value, float) else str(value)
            assert classes[code] == name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "a"], "got one: 'a' in 2 rows"),
        ([None, ""], "got 2 rows without one"),
        ([f"text {n}" for n in range(50)], "got 50 different texts in 50 rows"),
    ],
)
def test_what_is_no_label_is_refused(values: list[object], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_targets(values, "y")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=80), st.integers(0, 5))
def test_a_draw_holds_every_class_back_alike(labels: list[int], seed: int) -> None:
    if len(set(labels)) < 2 or max(labels.count(c) for c in labels) < 2:
        return
    targets = read_targets(labels, "y")
    facts = Facts(ids=[str(row) for row in range(len(labels))])
    split = split_rows(facts, targets, test_share=0.25, seed=seed)
    assert split.train is not None
    assert split.test is not None
    assert sorted([*split.train, *split.test]) == list(range(len(labels)))
    assert not set(split.pretrain) & set(split.test)
    codes = targets.codes
    for code in set(codes.tolist()):
        count, held = (codes == code).sum(), (codes[split.test] == code).sum()
        assert held == min(max(1, round(0.25 * count)), count - 1)
    again = split_rows(facts, targets, test_share=0.25, seed=seed)
    assert again.test is not None
    assert again.test.tolist() == split.test.tolist()


def test_numbers_to_rank_by_are_standardised_on_training_rows() -> None:
    data = {"x": make_signals(60)["x"], "y": 1e6 + 5 * np.arange(60.0) ** 2}
    opened = open_data(data)
    train = np.asarray(opened.dataset.need("train").labels)
    assert train.dtype == np.float32
    assert abs(float(train.mean())) < 1e-5
    assert abs(float(train.std()) - 1) < 1e-5
    test = np.asarray(opened.dataset.need("test").labels)
    rows = [int(row) for row in opened.ids["test"]]
    assert (np.argsort(test) == np.argsort(data["y"][rows])).all()
    description = Description.of(opened.dataset)
    again = np.asarray(read_like(data, description, label="y").partition.labels)
    assert again[rows].tolist() == test.tolist()


def test_a_group_is_never_split() -> None:
    data = make_signals(60) | {"who": np.repeat(np.arange(10), 6)}
    opened = open_data(data, group="who", seed=3)
    train, test = opened.dataset.need("train"), opened.dataset.need("test")
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups) & set(test.groups)
    assert len(test) == 12
    assert "by group" in opened.remarks[-1]
    assert open_data(data, group="who", seed=4).ids["test"] != opened.ids["test"]
    with pytest.raises(DataError, match="expected two groups or more"):
        open_data(data | {"who": np.zeros(60)}, group="who")


def test_a_column_says_what_is_for_testing() -> None:
    parts = ["train"] * 12 + ["Test"] * 6 + ["val"] * 3 + ["pretrain"] * 3
    opened = open_data(make_signals() | {"part": np.array(parts)}, split="part")
    assert opened.ids["test"] == [str(row) for row in range(12, 18)]
    assert opened.ids["train"] == [str(row) for row in (*range(12), *range(18, 21))]
    assert len(opened.ids["pretrain"]) == 18
    with pytest.raises(DataError, match="'maybe' in row 2"):
        open_data(make_signals() | {"part": np.array(["train", "test", "maybe"] * 8)}, split="part")


def test_rows_without_a_label_are_for_pretraining_alone() -> None:
    data = make_signals()
    labels = ["" if row % 4 == 0 else "ab"[row % 2] for row in range(24)]
    opened = open_data({"x": data["x"], "y": np.array(labels)})
    rows = {int(row) for part in ("train", "test") for row in opened.ids[part]}
    assert rows == {row for row in range(24) if row % 4}
    assert len(opened.ids["pretrain"]) == 24 - len(opened.ids["test"])
    assert "6 rows have none and are for pretraining alone" in " ".join(opened.remarks)


def test_without_a_label_there_is_no_task() -> None:
    opened = open_data(make_signals()["x"])
    assert opened.dataset.task is None
    assert opened.dataset.train is None
    assert len(opened.dataset.need("pretrain")) == 24
    assert list(opened.ids) == ["pretrain"]
    marked = open_data(
        {"x": make_signals()["x"], "part": np.array(["train", "test"] * 12)}, split="part"
    )
    assert len(marked.dataset.need("pretrain")) == 12, "what is marked for testing stays out"


def test_classes_of_one_group_alone_are_not_tested() -> None:
    data = {"x": make_signals(20)["x"], "y": np.array(["a", "b"] * 9 + ["c"] * 2)}
    data["who"] = np.array([0, 1, 2] * 6 + [3, 3])
    for seed in range(8):
        opened = open_data(data, group="who", seed=seed, test_share=0.4)
        if "18" in opened.ids["pretrain"]:
            continue
        assert not {"18", "19"} & set(opened.ids["test"])
        return
    pytest.fail("no seed held group 3 back alone with others")


def test_labels_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signals = make_signals()
    np.save("signals.npy", signals["x"])
    np.save("labels.npy", signals["y"])
    pd.DataFrame({"y": signals["y"]}).to_csv("labels.csv", index=False)
    pairs = pd.DataFrame({"row": range(24), "y": signals["y"]}).iloc[::-1]
    pairs.to_csv("pairs.csv", index=False)
    opened = [open_data("signals.npy", label=f) for f in ("labels.npy", "labels.csv", "pairs.csv")]
    codes = [np.asarray(one.dataset.need("train").labels).tolist() for one in opened]
    assert codes[0] == codes[1] == codes[2] == [int(row) % 3 for row in opened[0].ids["train"]]
    np.save("short.npy", signals["y"][:5])
    with pytest.raises(DataError, match=r"expected 24 values in 'short.npy', one a row, got 5"):
        open_data("signals.npy", label="short.npy")
    with pytest.raises(DataError, match=r"a file \(.*\) with label of signals.npy"):
        open_data("signals.npy", label="lables.npy")


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan"), True, "x"])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="expected test_share between 0 and 1"):
        open_data(make_signals(), test_share=share)
