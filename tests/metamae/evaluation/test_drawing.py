"""Draws of labels: exactly those asked for, the same for everybody, and never a held-out row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae import DataError
from metamae.data.dataset import Task
from metamae.evaluation.drawing import ALL, STAGES, Drawing, nearest, overlap
from metamae.evaluation.few_labels import draw_labels
from metamae.evaluation.tuned import hold_out

Array = np.ndarray[Any, Any]
TASK = Task.of_classes(("a", "b", "c"))
NUMBERS = Task(kind="regression", metric="spearman")


def three(rows: int = 120) -> Array:
    return np.arange(rows) % 3


@given(
    seed=st.integers(0, 2**32),
    draw=st.integers(0, 19),
    stage=st.sampled_from(STAGES),
    groups=st.booleans(),
    number=st.sampled_from([1, 2, 5, ALL]),
)
@settings(max_examples=40, deadline=None)
def test_a_draw_is_what_it_says(
    seed: int, draw: int, stage: Any, groups: bool, number: int
) -> None:
    labels = three()
    places = np.arange(120) // 6 if groups else None
    drawing = Drawing(TASK, labels, places, seed=seed)
    one, again = (drawing.draw(number, stage, draw) for _ in range(2))
    assert np.array_equal(one.rows, again.rows)
    assert len(set(one.rows)) == len(one.rows)
    if number != ALL:
        assert np.bincount(labels[one.rows]).tolist() == [number] * 3
    if stage == "test":
        assert one.held is None
        return
    assert one.held is not None
    assert not set(one.rows) & set(one.held)
    if number == ALL:
        assert sorted([*one.rows, *one.held]) == list(range(120))
    if places is not None:
        assert not set(places[one.rows]) & set(places[one.held])


def test_test_rows_are_judged_by_the_draws_of_the_few_label_probe() -> None:
    labels = three()
    drawn = Drawing(TASK, labels, seed=3).draw(5, "test", 7).rows
    assert np.array_equal(drawn, draw_labels(labels, 5, classes=3, seed=3, draw=7))


def test_cuts_differ_from_draw_to_draw() -> None:
    drawing = Drawing(TASK, three())
    held = [drawing.draw(1, "validation", draw).held for draw in range(3)]
    assert len({tuple(rows.tolist()) for rows in held if rows is not None}) == 3


def test_numbers_end_where_a_class_or_half_of_the_rows_does() -> None:
    assert Drawing(TASK, three(300)).numbers == (1, 2, 5, 10, 20, 50, ALL)
    rare = np.concatenate([three(300), np.zeros(0, int)])
    rare[rare == 2] = 1
    rare[:4] = 2
    assert Drawing(TASK, rare).numbers in ((1, ALL), (1, 2, ALL))
    assert Drawing(NUMBERS, np.linspace(0, 1, 100)).numbers == (5, 10, 20, 50, ALL)


def test_fewer_draws_where_many_rows_are_labelled() -> None:
    drawing = Drawing(TASK, three(3000), draws=20)
    assert [drawing.count(n, "test") for n in (5, 100, ALL)] == [20, 5, 1]
    assert drawing.count(ALL, "validation") == 5


def test_no_number_of_labels_is_more_than_all_of_them() -> None:
    """Where all are cut to 5000, as of many rows of many classes, the series ends before that."""
    task = Task.of_classes(tuple("abcdefghij"))
    drawing = Drawing(task, np.arange(50_000) % 10)
    assert drawing.numbers == (1, 2, 5, 10, 20, 50, 100, 200, ALL)
    assert drawing.all_labels() == 500


def test_a_large_group_is_held_out_only_where_no_other_can_be() -> None:
    """Else "all labels" would be fitted on a few rows; cuts without large groups are as ever."""
    labels = np.tile([0, 1], 50)
    one = np.repeat(np.arange(5), [80, 5, 5, 5, 5])
    assert {len(hold_out(labels, one, seed=seed)[1]) for seed in range(20)} == {20}
    two = np.repeat([0, 1], [60, 40])
    assert {len(hold_out(labels, two, seed=seed)[1]) for seed in range(20)} == {40}
    halves = np.repeat([0, 1, 2], [52, 47, 1])
    assert {len(hold_out(labels, halves, seed=seed)[1]) for seed in range(20)} <= {47, 48}
    single = np.repeat([0, 1], [98, 2])
    sizes = {len(hold_out(labels, single, seed=seed)[1]) for seed in range(20)}
    assert sizes == {2}


def test_all_labels_are_limited() -> None:
    drawing = Drawing(TASK, three(9000))
    assert len(drawing.draw(ALL, "test", 0).rows) == 5000
    assert drawing.all_labels() == pytest.approx(5000 / 3)


def test_tokens_are_refused() -> None:
    task = Task(kind="token_classification", metric="accuracy", classes=("a", "b"))
    with pytest.raises(DataError, match="a label for every token"):
        Drawing(task, np.zeros((4, 3), int))


def test_overlap_and_nearest() -> None:
    assert overlap(4) == pytest.approx(1 / 4 + 1 / 3)
    assert nearest((5, 10, 20, 0), 50) == 20
    assert nearest((0,), 5) == ALL
