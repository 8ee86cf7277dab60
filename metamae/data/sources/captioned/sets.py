"""Images with text: MSCOCO for pretraining, mismatched captions and visual questions to probe.

Images are stored once and named by the texts that belong to them. All draws come from the option
``seed``, which the manifest keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from metamae.data.dataset import Affine, Partition, PartitionName, Selected, Task
from metamae.data.formats.archives import Bundle
from metamae.data.formats.pictures import decode_centre
from metamae.data.formats.wordpiece import WORDS, WordPiece
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Option, Source, Stored
from metamae.data.preparing.views import View, store
from metamae.data.preparing.writer import Writer
from metamae.data.sources.captioned.captions import swap_captions
from metamae.data.sources.captioned.pairs import (
    LENGTH,
    Pairs,
    captioned_pairs,
    question_pairs,
    read_captions,
    read_names,
    read_questions,
)
from metamae.inputs import Image, Inputs, Tokens

SIDE = 224
"""Side of an image."""

SCALING = {"image": Affine.divide(255)}
"""Pixels are stored as bytes."""

VOCABULARY = "captioned_images/bert-base-uncased-vocab.txt"
"""Where the vocabulary of bert-base-uncased belongs, below the data folder."""

_VOCABULARIES = (VOCABULARY, "bert-base-uncased-vocab.txt", "bert-base-uncased/vocab.txt")


def _write(writer: Writer, part: PartitionName, pairs: Pairs, images: Bundle) -> None:
    """One partition; texts whose image could not be read are left out."""
    array = writer.array(f"image_{part}", (3, SIDE, SIDE), np.uint8)
    view = View.tails(r"(COCO_\w+_)?\d{12}\.jpg", images)
    rows = store(writer, array, view, pairs.files, lambda *file: decode_centre(*file)[np.newaxis])
    place = np.array([rows.get(file, (-1,))[0] for file in pairs.files], np.int64)[pairs.image]
    readable = place >= 0
    writer.save(f"row_{part}", place[readable])
    writer.save(f"text_{part}", pairs.texts[readable])
    labels = None if pairs.labels is None else writer.save(f"label_{part}", pairs.labels[readable])
    writer.partition(part, {"image": f"image_{part}", "text": f"text_{part}"}, labels=labels)


def _partitions(prepared: Stored, inputs: Inputs) -> dict[str, Partition]:
    """Images are looked up by the texts that belong to them."""
    return {
        part: Partition(
            arrays={
                "image": Selected(prepared.array(f"image_{part}"), prepared.array(f"row_{part}")),
                "text": prepared.array(f"text_{part}"),
            },
            inputs=inputs,
            scaling=SCALING,
            labels=None if entry["labels"] is None else np.array(prepared.array(entry["labels"])),
        )
        for part, entry in prepared.manifest["partitions"].items()
    }


_HALVES: tuple[tuple[PartitionName, str, str], ...] = (
    ("train", "train", "train"),
    ("test", "validation", "val"),
)
"""Partition, its word in the roles, and its word in the names of files."""


def _pieces(raw: Raw) -> WordPiece:
    path = raw.paths["vocabulary"]
    if path.suffix != ".txt":
        bundle = raw.bundle("vocabulary")
        path = raw.extract(bundle, bundle.one("*vocab.txt"))
    return WordPiece.read(path)


def _prepare_mscoco(raw: Raw, writer: Writer) -> None:
    pieces = _pieces(raw)
    captioned = read_captions(raw.bundle("annotations"), "train2017")
    _write(writer, "pretrain", captioned_pairs(captioned, pieces), raw.bundle("train"))


def _prepare_mismatched_caption(raw: Raw, writer: Writer) -> None:
    pieces = _pieces(raw)
    for part, role, word in _HALVES:
        captioned = read_captions(raw.bundle("annotations"), f"{word}2017")
        swaps = swap_captions(len(captioned.images), int(raw.options["seed"]), f"{word}2017")
        _write(writer, part, captioned_pairs(captioned, pieces, swaps=swaps), raw.bundle(role))


def _prepare_vqa(raw: Raw, writer: Writer) -> None:
    pieces = _pieces(raw)

    def bundle(role: str) -> Bundle:
        return raw.bundle(role if role in raw.paths else "all")

    for part, role, word in _HALVES:
        questions = read_questions(
            bundle(f"{role}_questions"),
            bundle(f"{role}_answers"),
            f"{word}2014",
            int(raw.options["seed"]),
        )
        names = read_names(bundle("annotations"), f"{word}2014")
        _write(writer, part, question_pairs(questions, names, pieces), bundle(f"{role}_images"))


def _inputs(patch: Sequence[int]) -> Inputs:
    return (
        Image(name="image", channels=3, height=SIDE, width=SIDE, patch=(patch[0], patch[-1])),
        Tokens(name="text", length=LENGTH, vocabulary=WORDS),
    )


def _source(
    name: str,
    prepare: Callable[[Raw, Writer], None],
    origin: str,
    split: str,
    layouts: Mapping[str, Mapping[str, str]],
    contents: Mapping[str, Content],
    totals: Mapping[str, int],
    *,
    probed: bool = True,
) -> Source:
    task = Task(kind="binary", metric="accuracy", classes=("mismatched", "matched"))
    seed = Option(("42", *map(str, range(10))), "seed of what is swapped or replaced")
    return Source(
        name=name,
        modality="vision-language",
        origin=f"{origin}; and vocab.txt of bert-base-uncased as {VOCABULARY}",
        inputs=_inputs,
        token_size=(16, 16),
        layouts=tuple(
            Layout(kind, {**paths, "vocabulary": _VOCABULARIES}) for kind, paths in layouts.items()
        ),
        contents={**contents, "vocabulary": Content(r"[^/]*vocab\.txt")},
        totals=totals,
        prepare=prepare,
        task=task if probed else None,
        pretrained_on="mscoco",
        split=split,
        scaling=SCALING,
        options={"seed": seed} if probed else {},
        partitions=_partitions,
    )


def _coco_layouts(**parts: str) -> dict[str, dict[str, str]]:
    """Roles to the name of a part: packed, unpacked, and as the two code bases keep them."""
    annotations = {"annotations": "annotations"}
    published = {role: f"{part}.zip" for role, part in parts.items()}
    folders = {"unpacked": "{}", "dabs": "captioned_images/mscoco/{}", "metamae": "COCO/{}"}
    return {"published": {**published, "annotations": "annotations_trainval2017.zip"}} | {
        kind: {role: where.format(part) for role, part in {**parts, **annotations}.items()}
        for kind, where in folders.items()
    }


def _images(word: str, count: int) -> Content:
    return Content(rf"(COCO_{word}2014_|{word}2017/)\d{{12}}\.jpg", count)


_ANNOTATIONS = Content(r"(captions|instances)_(train|val)20\d\d\.json")

_VQA_ARCHIVES = {
    "train_images": "train2014.zip",
    "validation_images": "val2014.zip",
    "annotations": "annotations_trainval2014.zip",
    "train_answers": "Annotations_Train_mscoco.zip",
    "validation_answers": "Annotations_Val_mscoco.zip",
    "train_questions": "Questions_Train_mscoco.zip",
    "validation_questions": "Questions_Val_mscoco.zip",
}

SOURCES = (
    _source(
        "mscoco",
        _prepare_mscoco,
        "train2017.zip and annotations_trainval2017.zip from cocodataset.org",
        "train2017: every image with a caption and an object, with its last caption.",
        _coco_layouts(train="train2017"),
        {"train": _images("train", 118_287), "annotations": _ANNOTATIONS},
        {"pretrain": 117_266},
        probed=False,
    ),
    _source(
        "mismatched_caption",
        _prepare_mismatched_caption,
        "train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org",
        "train2017 against val2017; half of the captions are rotated among their images. Never by "
        "their full number, which the published code allows and which swaps nothing.",
        _coco_layouts(train="train2017", validation="val2017"),
        {
            "train": _images("train", 118_287),
            "validation": _images("val", 5_000),
            "annotations": _ANNOTATIONS,
        },
        {"train": 117_266, "test": 4_952},
    ),
    _source(
        "vqa",
        _prepare_vqa,
        "train2014.zip, val2014.zip and annotations_trainval2014.zip from cocodataset.org, and the "
        "multiple-choice questions and annotations of VQA v1 (four zip archives) from visualqa.org",
        "train2014 against val2014; half of the answers are replaced by another choice, by a seed "
        "of their own instead of the run's global state.",
        {
            "published": _VQA_ARCHIVES,
            "dabs": {"all": "captioned_images/vqa/coco-vqa"},
            "unpacked": {"all": "vqa"},
        },
        {
            "train_images": _images("train", 82_783),
            "validation_images": _images("val", 40_504),
            "annotations": _ANNOTATIONS,
            "train_answers": Content(r"mscoco_train2014_annotations\.json"),
            "validation_answers": Content(r"mscoco_val2014_annotations\.json"),
            "train_questions": Content(r"MultipleChoice_mscoco_train2014_questions\.json"),
            "validation_questions": Content(r"MultipleChoice_mscoco_val2014_questions\.json"),
            "all": Content(r"MultipleChoice_mscoco_train2014_questions\.json"),
        },
        {},
    ),
)
