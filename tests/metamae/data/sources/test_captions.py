"""Captions, swaps and wrong answers: the published rules, and draws that depend on a seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources.captioned.captions import coco, swap_captions, vqa

CATEGORIES = [
    {"id": 90, "name": "toothbrush"},
    {"id": 1, "name": "person"},
    {"id": 13, "name": "stop sign"},
]


def test_the_last_caption_and_the_last_object_count() -> None:
    captions = [
        {"image_id": 9, "caption": "first"},
        {"image_id": 4, "caption": "four"},
        {"image_id": 9, "caption": "last"},
        {"image_id": 5, "caption": "no object"},
    ]
    objects = [
        {"image_id": 4, "category_id": 1},
        {"image_id": 9, "category_id": 90},
        {"image_id": 4, "category_id": 13},
        {"image_id": 7, "category_id": 1},  # no caption
    ]
    found = coco(captions, objects, CATEGORIES)
    assert found.images.tolist() == [4, 9]
    assert found.texts == ["four", "last"]
    assert found.labels.tolist() == [1, 2]
    assert found.categories == ("person", "stop sign", "toothbrush")


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(DataError, match="expected a name of category 2"):
        coco([{"image_id": 1, "caption": ""}], [{"image_id": 1, "category_id": 2}], CATEGORIES)


def test_swapped_captions_are_rotated_among_the_candidates() -> None:
    rows, labels = swap_captions(4000, 42, "train")
    swapped = np.flatnonzero(labels == 0)
    assert abs(len(swapped) - 2000) < 150
    assert np.array_equal(rows[labels == 1], np.flatnonzero(labels))
    assert not np.any(rows[swapped] == swapped)  # label 0 never stands beside the own caption
    places = np.searchsorted(swapped, rows[swapped])
    assert len(set((places - np.arange(len(swapped))) % len(swapped))) == 1  # one rotation


def test_swaps_depend_on_the_seed_and_the_part_alone() -> None:
    draws = [
        swap_captions(500, seed, part)[0] for seed, part in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images_are_swapped_or_left(count: int) -> None:
    """A single candidate has nobody to swap with, and keeps label 1."""
    for seed in range(40):
        rows, labels = swap_captions(count, seed, "x")
        assert sorted(rows.tolist()) == list(range(count))
        assert ((rows == np.arange(count)) == labels).all()


def asked(number: int, choices: list[str]) -> dict[str, Any]:
    return {
        "question_id": number,
        "image_id": number // 3,
        "question": "What?",
        "multiple_choices": choices,
    }


QUESTIONS = [asked(n, ["yes", "no", "2", "red"]) for n in range(900)]
ANSWERS = [{"question_id": n, "multiple_choice_answer": "no"} for n in range(900)]


def test_half_of_the_answers_are_replaced_by_other_choices() -> None:
    examples = vqa(QUESTIONS, ANSWERS, 42, "train")
    labels = np.array([one.label for one in examples])
    assert abs(labels.sum() - 450) < 60
    assert {one.answer for one in examples if one.label} == {"no"}
    wrong = [one.answer for one in examples if not one.label]
    assert set(wrong) == {"yes", "2", "red"}
    assert min(wrong.count(choice) for choice in set(wrong)) > 100
    assert [one.image for one in examples[:4]] == [0, 0, 0, 1]


def test_a_question_without_its_answer_is_dropped_and_moves_no_draw() -> None:
    """The draw of a question belongs to its place in the file."""
    odd = [*QUESTIONS[:5], asked(5, ["yes", "maybe"]), *QUESTIONS[6:]]
    full, fewer = vqa(QUESTIONS, ANSWERS, 42, "train"), vqa(odd, ANSWERS, 42, "train")
    assert fewer == full[:5] + full[6:]


def test_an_answer_without_alternative_stays() -> None:
    examples = vqa([asked(n, ["no", "no"]) for n in range(20)], ANSWERS, 42, "train")
    assert {(one.answer, one.label) for one in examples} == {("no", 1)}


def test_answers_depend_on_the_seed_and_the_part_alone() -> None:
    first = vqa(QUESTIONS, ANSWERS, 0, "train")
    assert first == vqa(QUESTIONS, ANSWERS, 0, "train")
    assert first != vqa(QUESTIONS, ANSWERS, 1, "train")
    assert first != vqa(QUESTIONS, ANSWERS, 0, "test")


def test_a_question_without_annotation_is_refused() -> None:
    with pytest.raises(DataError, match="expected an annotation of question 899"):
        vqa(QUESTIONS, ANSWERS[:-1], 0, "train")
