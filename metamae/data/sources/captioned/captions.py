"""Images with text: which caption, question and answer goes with which image, and whether it fits.

All draws are functions of a seed alone, which the manifest of the prepared data names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array
from metamae.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Captioned:
    """Images and one text each, by row.

    Attributes:
        images: Image ids, int64 ``(N,)``.
        texts: Captions.
        labels: Category of the last object annotated, from 0.
        categories: Names of the categories.
    """

    images: Array
    texts: list[str]
    labels: Array
    categories: tuple[str, ...]


def coco(
    captions: Iterable[Record], objects: Iterable[Record], categories: Iterable[Record]
) -> Captioned:
    """One example per image that has a caption and an object: its last caption, in file order.

    Args:
        captions: ``annotations`` of ``captions_*.json``.
        objects: ``annotations`` of ``instances_*.json``.
        categories: ``categories`` of the same file; their ids have gaps.

    Returns:
        Examples by ascending image id.
    """
    text = {int(record["image_id"]): str(record["caption"]) for record in captions}
    last = {int(record["image_id"]): int(record["category_id"]) for record in objects}
    names = {int(record["id"]): str(record["name"]) for record in categories}
    rank = {category: number for number, category in enumerate(sorted(names))}
    images = sorted(text.keys() & last.keys())
    unknown = [last[image] for image in images if last[image] not in rank]
    if unknown:
        raise DataError(f"expected a name of category {unknown[0]} in the instances file")
    return Captioned(
        images=np.array(images, np.int64),
        texts=[text[image] for image in images],
        labels=np.array([rank[last[image]] for image in images], np.int64),
        categories=tuple(names[category] for category in sorted(names)),
    )


def swap_captions(count: int, seed: int, part: str) -> tuple[Array, Array]:
    """Whose caption every image gets, and whether it is its own.

    Each image is a candidate with probability one half; the candidates' captions are rotated among
    them by a random amount. The published code may rotate by their full number, which swaps
    nothing and labels every candidate wrongly; here the amount is smaller. Two images may still
    have fitting captions by chance.

    Args:
        count: Number of images.
        seed: Seed of the draw.
        part: Name of the partition, which gets draws of its own.

    Returns:
        Rows of the captions ``(count,)``, and labels: 1 own, 0 another's.

    Example:
        >>> from metamae.data.sources.captioned.captions import swap_captions
        >>> rows, labels = swap_captions(1000, 42, "train")
        >>> (
        ...     bool(((rows == range(1000)) == labels).all()),
        ...     sorted(rows.tolist()) == list(range(1000)),
        ... )
        (True, True)
    """
    random = np.random.default_rng(fold(seed, f"mismatched captions {part}"))
    rows, labels = np.arange(count), np.ones(count, np.int64)
    candidates = np.flatnonzero(random.random(count) < 0.5)
    if len(candidates) > 1:
        shift = int(random.integers(1, len(candidates)))
        rows[candidates] = np.roll(candidates, shift)
        labels[candidates] = 0
    return rows, labels


@dataclass(frozen=True)
class Question:
    """A question about an image and an answer, right (label 1) or wrong (0)."""

    image: int
    question: str
    answer: str
    label: int


def vqa(
    questions: Iterable[Record], annotations: Iterable[Record], seed: int, part: str
) -> list[Question]:
    """Multiple-choice questions, half of them with a wrong answer among their choices.

    Questions whose answer is not among their choices are dropped. With probability one half the
    answer is replaced by another choice. Draws belong to the place of a question in the file.

    Args:
        questions: ``questions`` of ``MultipleChoice_*_questions.json``.
        annotations: ``annotations`` of ``*_annotations.json``.
        seed: Seed of the draws.
        part: Name of the partition, which gets draws of its own.
    """
    answers = {
        int(record["question_id"]): str(record["multiple_choice_answer"]) for record in annotations
    }
    random = np.random.default_rng(fold(seed, f"wrong answers {part}"))
    examples = []
    for record in questions:
        replaced, which = random.random(2)
        answer = answers.get(int(record["question_id"]))
        if answer is None:
            raise DataError(
                f"expected an annotation of question {record['question_id']}, found none"
            )
        if answer not in record["multiple_choices"]:
            continue
        others = [choice for choice in record["multiple_choices"] if choice != answer]
        label = 0 if replaced < 0.5 and others else 1
        shown = answer if label else str(others[int(which * len(others))])
        examples.append(Question(int(record["image_id"]), str(record["question"]), shown, label))
    return examples
