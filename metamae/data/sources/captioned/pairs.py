"""Texts in WordPiece indices beside the files of their images, from published annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.archives import Bundle
from metamae.data.formats.tables import json_records
from metamae.data.formats.wordpiece import WordPiece
from metamae.data.sources.captioned.captions import Captioned, Question, coco, vqa
from metamae.errors import DataError

LENGTH = 32
"""Tokens of a text."""


@dataclass(frozen=True)
class Pairs:
    """Texts of one partition, the image of each and, for a probe, the label of each.

    Attributes:
        files: Image files, each of them once.
        image: Which of them belongs to each text, int64 ``(N,)``.
        texts: Token indices, uint16 ``(N, 32)``.
        labels: 1 where text and image belong together, else 0; ``None`` for pretraining.
    """

    files: list[str]
    image: Array
    texts: Array
    labels: Array | None


def captioned_pairs(
    found: Captioned, pieces: WordPiece, *, swaps: tuple[Array, Array] | None = None
) -> Pairs:
    """Images of COCO with their captions, or with those that ``swap_captions`` gives them."""
    rows, labels = swaps or (np.arange(len(found.images)), None)
    return Pairs(
        files=[f"{image:012d}.jpg" for image in found.images],
        image=np.arange(len(found.images)),
        texts=encode([(found.texts[row], None) for row in rows], pieces),
        labels=labels,
    )


def question_pairs(found: Sequence[Question], names: Mapping[int, str], pieces: WordPiece) -> Pairs:
    """Questions with their answers and images; ``names`` gives the file of an image id."""
    ids = sorted({one.image for one in found})
    absent = [image for image in ids if image not in names]
    if absent:
        raise DataError(f"expected the file name of image {absent[0]} in the captions file")
    return Pairs(
        files=[names[image] for image in ids],
        image=np.searchsorted(ids, [one.image for one in found]).astype(np.int64),
        texts=encode([(one.question, one.answer) for one in found], pieces),
        labels=np.array([one.label for one in found], np.int64),
    )


def encode(texts: Sequence[tuple[str, str | None]], pieces: WordPiece) -> Array:
    """Token indices of texts or of pairs of texts, uint16 ``(N, 32)``."""
    rows = [pieces.encode(text, pair, length=LENGTH) for text, pair in texts]
    return np.array(rows, np.uint16).reshape(len(rows), LENGTH)


def read_captions(annotations: Bundle, part: str) -> Captioned:
    """Captions and objects of ``train2017`` or ``val2017``."""
    captions, instances = f"captions_{part}.json", f"instances_{part}.json"
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(annotations.open(annotations.one(name)))
            for name in (captions, instances, instances)
        )
        return coco(
            json_records(first, captions, key="annotations"),
            json_records(second, instances, key="annotations"),
            json_records(third, instances, key="categories"),
        )


def read_questions(questions: Bundle, answers: Bundle, part: str, seed: int) -> list[Question]:
    """Multiple-choice questions of ``train2014`` or ``val2014``."""
    asked = f"MultipleChoice_mscoco_{part}_questions.json"
    told = f"mscoco_{part}_annotations.json"
    with questions.open(questions.one(asked)) as one, answers.open(answers.one(told)) as other:
        return vqa(
            json_records(one, asked, key="questions"),
            json_records(other, told, key="annotations"),
            seed,
            part,
        )


def read_names(annotations: Bundle, part: str) -> dict[int, str]:
    """File names by image id, from ``captions_PART.json``."""
    name = f"captions_{part}.json"
    with annotations.open(annotations.one(name)) as file:
        return {
            int(one["id"]): str(one["file_name"]) for one in json_records(file, name, key="images")
        }
