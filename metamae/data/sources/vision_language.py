"""Images with text: MSCOCO for pretraining, mismatched captions and visual questions to probe.

Images are stored once and named by the texts that belong to them. All draws come from the option
``seed``, which the manifest keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from metamae.data.archives import Bundle
from metamae.data.dataset import Array, Part, Partition, Selected
from metamae.data.prepared import Prepared
from metamae.data.source import Raw
from metamae.data.sources.captions import Captioned, Question, coco, swap_captions, vqa
from metamae.data.sources.json_lists import json_records
from metamae.data.sources.pictures import decode_centre
from metamae.data.sources.views import View, store
from metamae.data.sources.wordpiece import WordPiece
from metamae.data.writer import Writer
from metamae.errors import DataError
from metamae.inputs import Inputs

LENGTH, SIDE = 32, 224
"""Tokens of a text, and the side of an image."""

VOCABULARY = "captioned_images/bert-base-uncased-vocab.txt"
"""Where the vocabulary of bert-base-uncased belongs, below the data folder."""


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
            json_records(first, "annotations", captions),
            json_records(second, "annotations", instances),
            json_records(third, "categories", instances),
        )


def read_questions(questions: Bundle, answers: Bundle, part: str, seed: int) -> list[Question]:
    """Multiple-choice questions of ``train2014`` or ``val2014``."""
    asked = f"MultipleChoice_mscoco_{part}_questions.json"
    told = f"mscoco_{part}_annotations.json"
    with questions.open(questions.one(asked)) as one, answers.open(answers.one(told)) as other:
        return vqa(
            json_records(one, "questions", asked),
            json_records(other, "annotations", told),
            seed,
            part,
        )


def read_names(annotations: Bundle, part: str) -> dict[int, str]:
    """File names by image id, from ``captions_PART.json``."""
    name = f"captions_{part}.json"
    with annotations.open(annotations.one(name)) as file:
        return {int(one["id"]): str(one["file_name"]) for one in json_records(file, "images", name)}


def _write(writer: Writer, part: Part, pairs: Pairs, images: Bundle) -> None:
    """One partition; texts whose image could not be read are left out."""
    array = writer.array(f"image_{part}", (3, SIDE, SIDE), np.uint8)
    view = View.tails(r"(COCO_\w+_)?\d{12}\.jpg", images)
    rows = store(writer, array, view, pairs.files, lambda *file: decode_centre(*file)[np.newaxis])
    place = np.array([rows.get(file, (-1,))[0] for file in pairs.files], np.int64)[pairs.image]
    kept = place >= 0
    writer.save(f"row_{part}", place[kept])
    writer.save(f"text_{part}", pairs.texts[kept])
    labels = None if pairs.labels is None else writer.save(f"label_{part}", pairs.labels[kept])
    writer.partition(part, {"image": f"image_{part}", "text": f"text_{part}"}, labels=labels)


def _partitions(found: Prepared, inputs: Inputs) -> dict[str, Partition]:
    """Images are looked up by the texts that belong to them."""
    return {
        part: Partition(
            arrays={
                "image": Selected(found.array(f"image_{part}"), found.array(f"row_{part}")),
                "text": found.array(f"text_{part}"),
            },
            inputs=inputs,
            scaling=found.source.scaling,
            labels=None if told["labels"] is None else np.array(found.array(told["labels"])),
        )
        for part, told in found.manifest["partitions"].items()
    }


def _prepare_mscoco(raw: Raw, writer: Writer) -> None:
    pieces = WordPiece.read(raw.paths["vocabulary"])
    found = read_captions(raw.bundle("annotations"), "train2017")
    _write(writer, "pretrain", captioned_pairs(found, pieces), raw.bundle("train"))


def _prepare_mismatched_caption(raw: Raw, writer: Writer) -> None:
    pieces = WordPiece.read(raw.paths["vocabulary"])
    parts: tuple[tuple[Part, str, str], ...] = (
        ("train", "train", "train2017"),
        ("test", "validation", "val2017"),
    )
    for part, role, name in parts:
        found = read_captions(raw.bundle("annotations"), name)
        swaps = swap_captions(len(found.images), int(raw.options["seed"]), name)
        _write(writer, part, captioned_pairs(found, pieces, swaps=swaps), raw.bundle(role))


def _prepare_vqa(raw: Raw, writer: Writer) -> None:
    pieces = WordPiece.read(raw.paths["vocabulary"])
    parts: tuple[tuple[Part, str, str], ...] = (
        ("train", "train", "train2014"),
        ("test", "validation", "val2014"),
    )
    for part, role, name in parts:

        def bundle(what: str, role: str = role) -> Bundle:
            asked = f"{role}_{what}" if what != "annotations" else what
            return raw.bundle(asked if asked in raw.paths else "all")

        seed = int(raw.options["seed"])
        found = read_questions(bundle("questions"), bundle("answers"), name, seed)
        names = read_names(bundle("annotations"), name)
        _write(writer, part, question_pairs(found, names, pieces), bundle("images"))


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
            Layout(kind, {**paths, "vocabulary": VOCABULARY}) for kind, paths in layouts.items()
        ),
        prepare=prepare,
        task=task if probed else None,
        pretrained_on="mscoco",
        split=split,
        scaling={"image": Affine.divide(255)},
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
        probed=False,
    ),
    _source(
        "mismatched_caption",
        _prepare_mismatched_caption,
        "train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org",
        "train2017 against val2017; half of the captions are rotated among their images. Never by "
        "their full number, which the published code allows and which swaps nothing.",
        _coco_layouts(train="train2017", validation="val2017"),
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
    ),
)
