"""Images with text, from the published COCO and VQA archives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metamae.data.dataset import Array
from metamae.data.sources.captions import Captioned, Question, coco, vqa
from metamae.data.sources.files import Files, json_records
from metamae.data.sources.pictures import decode_centre
from metamae.data.sources.wordpiece import WORDS, WordPiece
from metamae.errors import DataError
from metamae.inputs import Image, Inputs, Tokens

LENGTH, SIDE = 32, 224
"""Tokens of a text, and the side of an image."""

FIT = ("mismatched", "matched")
"""Classes of both probes: does the text belong to the image?"""


def inputs(token_size: Sequence[int] = (), alphabet: tuple[str, ...] = ()) -> Inputs:
    """An image in patches of 16 x 16 and a text of 32 tokens, joined to 228."""
    height, width = (token_size[0], token_size[-1]) if token_size else (16, 16)
    return (
        Image(name="image", channels=3, height=SIDE, width=SIDE, patch=(height, width)),
        Tokens(name="text", length=LENGTH, vocabulary=WORDS, alphabet=alphabet),
    )


@dataclass(frozen=True)
class Pairs:
    """Images and texts of one partition; an image may belong to several texts.

    Attributes:
        images: Files, each of them once.
        image_rows: Which of them belongs to each text.
        texts: Token indices, uint16 ``(N, 32)``.
        labels: One a text.
    """

    images: list[str]
    image_rows: Array
    texts: Array
    labels: Array


def read_coco(annotations: Files, part: str) -> Captioned:
    """Captioned images of ``train2017`` or ``val2017``."""
    captions, instances = f"captions_{part}.json", f"instances_{part}.json"
    root = annotations.around(captions)
    with (
        root.open(captions) as first,
        root.open(instances) as second,
        root.open(instances) as third,
    ):
        return coco(
            json_records(first, "annotations", captions),
            json_records(second, "annotations", instances),
            json_records(third, "categories", instances),
        )


def coco_pairs(found: Captioned, pieces: WordPiece, rows: Array, labels: Array) -> Pairs:
    """Every image with the caption of the row given for it."""
    return Pairs(
        images=[f"{image:012d}.jpg" for image in found.images],
        image_rows=np.arange(len(found.images)),
        texts=encode([(found.texts[row], None) for row in rows], pieces),
        labels=labels,
    )


def read_vqa(questions: Files, answers: Files, part: str, seed: int) -> list[Question]:
    """Multiple-choice questions of ``train2014`` or ``val2014``."""
    asked = f"MultipleChoice_mscoco_{part}_questions.json"
    answered = f"mscoco_{part}_annotations.json"
    first, second = questions.around(asked), answers.around(answered)
    with first.open(asked) as one, second.open(answered) as other:
        return vqa(
            json_records(one, "questions", asked),
            json_records(other, "annotations", answered),
            seed,
            part,
        )


def vqa_pairs(found: Sequence[Question], names: dict[int, str], pieces: WordPiece) -> Pairs:
    """Every question with its image; ``names`` gives the file of an image id."""
    ids = sorted({one.image for one in found})
    absent = [image for image in ids if image not in names]
    if absent:
        raise DataError(f"expected the file name of image {absent[0]} in the captions file")
    return Pairs(
        images=[names[image] for image in ids],
        image_rows=np.searchsorted(ids, [one.image for one in found]),
        texts=encode([(one.question, one.answer) for one in found], pieces),
        labels=np.array([one.label for one in found], np.int64),
    )


def image_names(annotations: Files, part: str) -> dict[int, str]:
    """File names by image id, from ``captions_PART.json``."""
    captions = f"captions_{part}.json"
    root = annotations.around(captions)
    with root.open(captions) as file:
        return {
            int(one["id"]): str(one["file_name"]) for one in json_records(file, "images", captions)
        }


def encode(texts: Sequence[tuple[str, str | None]], pieces: WordPiece) -> Array:
    """Token indices of texts or pairs of texts, uint16 ``(N, 32)``."""
    rows = [pieces.encode(text, pair, length=LENGTH) for text, pair in texts]
    return np.array(rows, np.uint16).reshape(len(rows), LENGTH)


def read_image(images: Files, name: str) -> Array:
    """One image, uint8 ``(3, 224, 224)``."""
    return decode_centre(images.read(name), name)
