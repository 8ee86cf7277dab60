"""Texts in WordPiece indices beside the files of their images, from published annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.archives import Bundle
from metamae.data.formats.tables import json_records
from metamae.data.formats.wordpiece import WordPiece
from metamae.data.sources.captioned.captions import Captioned, Question, Record, coco, vqa
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
    captioned: Captioned, pieces: WordPiece, *, swaps: tuple[Array, Array] | None = None
) -> Pairs:
    """Images of COCO with their captions, or with those that ``swap_captions`` gives them."""
    rows, labels = swaps or (np.arange(len(captioned.images)), None)
    return Pairs(
        files=[f"{image:012d}.jpg" for image in captioned.images],
        image=np.arange(len(captioned.images)),
        texts=encode([(captioned.texts[row], None) for row in rows], pieces),
        labels=labels,
    )


def question_pairs(
    questions: Sequence[Question], names: Mapping[int, str], pieces: WordPiece
) -> Pairs:
    """Questions with their answers and images; ``names`` gives the file of an image id."""
    ids = sorted({question.image for question in questions})
    absent = [image for image in ids if image not in names]
    if absent:
        raise DataError(f"expected the file name of image {absent[0]} in the captions file")
    return Pairs(
        files=[names[image] for image in ids],
        image=np.searchsorted(ids, [question.image for question in questions]).astype(np.int64),
        texts=encode([(question.question, question.answer) for question in questions], pieces),
        labels=np.array([question.label for question in questions], np.int64),
    )


def encode(texts: Sequence[tuple[str, str | None]], pieces: WordPiece) -> Array:
    """Token indices of texts or of pairs of texts, uint16 ``(N, 32)``."""
    rows = [pieces.encode(text, pair, length=LENGTH) for text, pair in texts]
    return np.array(rows, np.uint16).reshape(len(rows), LENGTH)


def read_captions(annotations: Bundle, part: str) -> Captioned:
    """Captions and objects of ``train2017`` or ``val2017``."""
    captions, instances = f"captions_{part}.json", f"instances_{part}.json"
    return coco(
        _records(annotations, captions, "annotations"),
        _records(annotations, instances, "annotations"),
        _records(annotations, instances, "categories"),
    )


def read_questions(questions: Bundle, answers: Bundle, part: str, seed: int) -> list[Question]:
    """Multiple-choice questions of ``train2014`` or ``val2014``."""
    return vqa(
        _records(questions, f"MultipleChoice_mscoco_{part}_questions.json", "questions"),
        _records(answers, f"mscoco_{part}_annotations.json", "annotations"),
        seed,
        part,
    )


def read_names(annotations: Bundle, part: str) -> dict[int, str]:
    """File names by image id, from ``captions_PART.json``."""
    images = _records(annotations, f"captions_{part}.json", "images")
    return {int(image["id"]): str(image["file_name"]) for image in images}


def _records(bundle: Bundle, name: str, key: str) -> Iterator[Record]:
    """The list of a key in one of the JSON files."""
    with bundle.open(bundle.one(name)) as file:
        yield from json_records(file, name, key=key)
