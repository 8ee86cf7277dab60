"""COCO and VQA archives in their published layouts become images and tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources import vision_language as vl
from metamae.data.sources.files import open_files
from metamae.data.sources.wordpiece import WordPiece
from tests.metamae.data import packing
from tests.metamae.data.packing import pack


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_bytes(packing.vocabulary())
    return WordPiece.read(path)


def test_captions_are_those_of_images_with_an_object(pieces: WordPiece, tmp_path: Path) -> None:
    archives = packing.coco()
    place = pack(archives["annotations_trainval2017.zip"], tmp_path / "annotations.zip")
    with open_files(place, tmp_path) as files:
        found = vl.read_coco(files, "train2017")
    assert found.images.tolist() == [2, 3, 4, 5, 6, 7]  # 1 has no caption, 8 no object
    assert found.texts[0] == "a cat 2"
    assert found.labels.tolist() == [1, 0, 1, 0, 1, 0]
    rows = np.array([1, 0, 2, 3, 4, 5])
    pairs = vl.coco_pairs(found, pieces, rows, (rows == range(6)).astype(np.int64))
    assert pairs.images[0] == "000000000002.jpg"
    assert pairs.texts.dtype == np.uint16
    assert pairs.texts[1][:7].tolist() == [101, 2000, 2002, 2010, 102, 0, 0]  # a cat 2
    with open_files(pack(archives["train2017.zip"], tmp_path / "images.zip"), tmp_path) as files:
        inside = files.below("train2017")
        image = vl.read_image(inside, pairs.images[2])
        assert image.shape == (3, 224, 224)
        assert image[0].mean() == pytest.approx(40, abs=2)


def test_questions_share_their_image(pieces: WordPiece, tmp_path: Path) -> None:
    archives = packing.vqa()
    merged = {
        name: content
        for key in ("annotations_trainval2014.zip", "Questions_Val_mscoco.zip")
        for name, content in archives[key].items()
    } | archives["Annotations_Val_mscoco.zip"]
    with open_files(pack(merged, tmp_path / "vqa"), tmp_path) as files:
        found = vl.read_vqa(files, files, "val2014", seed=42)
        names = vl.image_names(files, "val2014")
    assert len(found) == 7  # the answer of the first is not among its choices
    assert {one.answer for one in found if one.label} <= {"yes"}
    assert not any(one.answer == "yes" for one in found if not one.label)
    pairs = vl.vqa_pairs(found, names, pieces)
    assert pairs.images == [f"COCO_val2014_{n:012d}.jpg" for n in (11, 12, 13, 14)]
    assert pairs.image_rows.tolist() == [0, 1, 1, 2, 2, 3, 3]
    row = pairs.texts[0].tolist()
    assert row[:7] == [101, 2003, 2004, 2000, 2001, 2009, 2005]  # [CLS] is it a dog 1 ?
    assert row[7] == 102
    assert row[9:11] == [102, 0]


def test_an_image_without_a_file_name_is_refused(pieces: WordPiece, tmp_path: Path) -> None:
    with open_files(pack(packing.vqa()["Questions_Val_mscoco.zip"], tmp_path / "q"), tmp_path) as q:
        answers = pack(packing.vqa()["Annotations_Val_mscoco.zip"], tmp_path / "a")
        with open_files(answers, tmp_path) as a:
            found = vl.read_vqa(q, a, "val2014", seed=42)
    with pytest.raises(DataError, match="expected the file name of image 12 in the captions file"):
        vl.vqa_pairs(found, {11: "x.jpg"}, pieces)


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    with (
        open_files(pack({"a.txt": b""}, tmp_path / "x"), tmp_path) as files,
        pytest.raises(DataError, match=r"expected a file captions_train2017\.json in"),
    ):
        vl.read_coco(files, "train2017")
