"""COCO and VQA annotations become pairs of an image and a text of 32 tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.formats.archives import open_bundle
from metamae.data.formats.wordpiece import WordPiece
from metamae.data.sources.captioned.captions import swap_captions
from metamae.data.sources.captioned.pairs import (
    captioned_pairs,
    question_pairs,
    read_captions,
    read_names,
    read_questions,
)
from tests.metamae.data import packing
from tests.metamae.data.packing import pack


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_bytes(packing.vocabulary())
    return WordPiece.read(path)


def test_captions_are_those_of_images_with_an_object(pieces: WordPiece, tmp_path: Path) -> None:
    archive = pack(packing.coco()["annotations_trainval2017.zip"], tmp_path / "annotations.zip")
    found = read_captions(open_bundle(archive), "train2017")
    assert found.images.tolist() == [*range(2, 24)]  # 1 has no caption, 24 no object
    assert found.texts[0] == "a cat 0 2"
    assert found.labels.tolist() == [1, 0] * 11
    own = captioned_pairs(found, pieces)
    assert own.files[0] == "000000000002.jpg"
    assert own.labels is None
    assert own.texts.dtype == np.uint16
    assert own.texts[0][:7].tolist() == [101, 2000, 2002, 2009, 2011, 102, 0]  # a cat 0 2
    swaps = swap_captions(22, 42, "train2017")
    swapped = captioned_pairs(found, pieces, swaps=swaps)
    assert np.array_equal(swapped.texts, own.texts[swaps[0]])
    assert swapped.image.tolist() == list(range(22))
    assert np.array_equal(swapped.labels, swaps[1])  # type: ignore[arg-type]


def test_questions_share_their_image(pieces: WordPiece, tmp_path: Path) -> None:
    archives = packing.vqa()
    names = (
        "annotations_trainval2014.zip",
        "Questions_Val_mscoco.zip",
        "Annotations_Val_mscoco.zip",
    )
    annotations, questions, answers = (
        open_bundle(pack(archives[name], tmp_path / name)) for name in names
    )
    found = read_questions(questions, answers, "val2014", seed=42)
    assert len(found) == 7  # the answer of the first is not among its choices
    assert {one.answer for one in found if one.label} <= {"yes"}
    assert not any(one.answer == "yes" for one in found if not one.label)
    pairs = question_pairs(found, read_names(annotations, "val2014"), pieces)
    assert pairs.files == [f"COCO_val2014_{n:012d}.jpg" for n in (11, 12, 13, 14)]
    assert pairs.image.tolist() == [0, 1, 1, 2, 2, 3, 3]
    row = pairs.texts[0].tolist()
    assert row[:8] == [101, 2003, 2004, 2000, 2001, 2010, 2005, 102]  # is it a dog 1 ?
    assert row[9:11] == [102, 0]
    with pytest.raises(DataError, match="expected the file name of image 12 in the captions file"):
        question_pairs(found, {11: "x.jpg"}, pieces)
