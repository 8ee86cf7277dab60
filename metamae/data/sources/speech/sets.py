"""Speech: LibriSpeech for pretraining and probing, and six tasks to transfer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from metamae.data.dataset import Affine, Array, Task
from metamae.data.formats.audio import read_clip
from metamae.data.formats.mel import MELS, log_mel
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Option, Source, packed_or_not
from metamae.data.preparing.views import View, lines, store, store_halves, tables
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.data.sources.speech import lists as lists
from metamae.inputs import Image, Inputs

PRETRAINING = ("train-clean-100", "train-clean-360", "train-other-500")
"""Subsets of LibriSpeech to pretrain on, in their order."""


def spectrograms(content: bytes, name: str, *, tail: bool = False) -> Array:
    """Pictures of one clip, float16 ``(1 or 2, 1, 224, 224)``: its head, and the tail if longer.

    Half precision holds these decibels to 0.03, a four-hundredth of their deviation.

    Args:
        content: A sound file.
        name: What it is called in an error.
        tail: Whether long clips have two pictures; otherwise the head alone counts.
    """
    clip = read_clip(content, name, tail=tail)
    waves = [clip.head] if clip.tail is None else [clip.head, clip.tail]
    pictures = np.stack([log_mel(wave, clip.rate) for wave in waves])
    return pictures[:, np.newaxis].astype(np.float16)


def _array(writer: Writer, name: str) -> RowWriter:
    return writer.array(name, (1, MELS, MELS), np.float16)


def _save(writer: Writer, halves: Halves, view: View) -> None:
    """Write the heads of all listed clips."""
    store_halves(writer, _array(writer, "spectrogram"), view, halves, spectrograms)


def _prepare_librispeech(raw: Raw, writer: Writer) -> None:
    """Pretraining clips with head and tail, and the heads of dev-clean.

    A long clip is seen from its head or from its tail by a fair coin. Both are stored, and every
    clip has two rows of the partition: head and tail, or the one picture of a short clip twice.
    So the coin is part of the row number, and drawing rows uniformly tosses it anew every time.
    """
    if raw.wants("pretrain"):
        _prepare_pretraining(raw, writer)
    if raw.wants("probe"):
        view = View.tails(_UTTERANCE, raw.bundle("dev-clean"))
        _save(writer, lists.librispeech(view.members), view)


def _prepare_pretraining(raw: Raw, writer: Writer) -> None:
    array = _array(writer, "pretraining")
    index: list[int] = []
    for subset in PRETRAINING:
        view = View.tails(_UTTERANCE, raw.bundle(subset))
        names = sorted(view.members)
        rows = store(writer, array, view, names, partial(spectrograms, tail=True))
        index += [row for name in names if name in rows for row in rows[name]]
    writer.partition("pretrain", {"spectrogram": "pretraining"}, index=np.array(index, np.int64))


def _prepare_audiomnist(raw: Raw, writer: Writer) -> None:
    view = View.tails(r"\d\d/\d_\d\d_\d+\.wav", raw.bundle("clips"))
    _save(writer, lists.audiomnist(view.members), view)


def _prepare_fluent(raw: Raw, writer: Writer, task: str) -> None:
    bundle = raw.bundle("clips")
    view = View.around("data/train_data.csv", bundle)
    contents = tables(bundle, *(f"data/{name}" for name in lists.FLUENT_TABLES))
    texts = (content.decode("utf-8-sig") for content in contents)
    _save(writer, lists.fluent(dict(zip(lists.FLUENT_TABLES, texts, strict=True)), task), view)


def _prepare_google_speech(raw: Raw, writer: Writer) -> None:
    bundle = raw.bundle("clips")
    view = View.tails(r"[^/]+/[^/]+\.wav", bundle)
    testing, validation = map(lines, tables(bundle, "testing_list.txt", "validation_list.txt"))
    leak = raw.options["train"] == "as_published"
    _save(writer, lists.google_speech(view.members, testing, validation, as_published=leak), view)


def _prepare_voxceleb1(raw: Raw, writer: Writer) -> None:
    """Both parts of the identification split have speakers of both published archives."""
    (split,) = tables(raw.bundle("split" if "split" in raw.paths else "clips"), "iden_split.txt")
    bundles = [raw.bundle(role) for role in ("clips", "more") if role in raw.paths]
    _save(writer, lists.voxceleb(lines(split)), View.tails(r"id\d+/[^/]+/[^/]+\.wav", *bundles))


_UTTERANCE = r"\d+/\d+/[^/]+\.flac"


def _inputs(patch: Sequence[int]) -> Inputs:
    return (
        Image(name="spectrogram", channels=1, height=MELS, width=MELS, patch=(patch[0], patch[-1])),
    )


def _decibels(mean: float, deviation: float) -> Mapping[str, Affine]:
    """The published scaling of a set."""
    pair = (np.full((), value, np.float32) for value in (mean, deviation))
    return {"spectrogram": Affine(*pair)}


_source = partial(
    Source,
    modality="speech",
    inputs=_inputs,
    token_size=(16, 16),
    pretrained_on="librispeech",
    modules=("soundfile",),
)

_clips = partial(packed_or_not, "clips")


def _subsets(kind: str, where: str) -> Layout:
    return Layout(kind, {subset: where.format(subset) for subset in (*PRETRAINING, "dev-clean")})


_CLIPS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
}
"""Published clips of the subsets of LibriSpeech."""

_FLUENT = "fluent_speech_commands_dataset"

SOURCES = (
    _source(
        name="librispeech",
        origin="train-clean-100, train-clean-360, train-other-500 and dev-clean (.tar.gz) from "
        "OpenSLR 12",
        layouts=(
            _subsets("published", "{}.tar.gz"),
            _subsets("unpacked", "LibriSpeech/{}"),
            _subsets("dabs", "speech/librispeech/LibriSpeech/{}"),
            _subsets("metamae", "speech/LibriSpeech/{}"),
        ),
        contents={
            subset: Content(rf"{subset}/{_UTTERANCE}", clips) for subset, clips in _CLIPS.items()
        },
        totals={"pretrain": 2 * 281_241, "spectrogram": _CLIPS["dev-clean"]},
        enough_for={"pretrain": PRETRAINING, "probe": ("dev-clean",)},
        prepare=_prepare_librispeech,
        task=Task.of_classes(),
        split="pretraining on the three training subsets, head or tail of long clips by a "
        "coin; probe on the speakers of dev-clean, each cut 80/20 with one RandomState(42).",
        scaling=_decibels(-22.924, 12.587),
    ),
    _source(
        name="audiomnist",
        origin="the AudioMNIST repository (its folder, or the zip archive of its main branch)",
        layouts=_clips(
            {"clips": "AudioMNIST-master.zip"}, unpacked="AudioMNIST", dabs="speech/AudioMNIST"
        ),
        contents={"clips": Content(r"\d\d/\d_\d\d_\d+\.wav", 30_000)},
        totals={"train": 24_000, "test": 6_000},
        prepare=_prepare_audiomnist,
        task=Task.of_classes("0123456789"),
        split="by speaker: 12 for testing, the other 48 for training.",
        scaling=_decibels(-90.293, 11.799),
    ),
    *(
        _source(
            name=f"fluent_{task}",
            origin="the Fluent Speech Commands archive of Fluent.ai",
            layouts=_clips(
                {
                    "clips": (
                        f"{_FLUENT}.zip",
                        "jf8398hf30f0381738rucj3828chfdnchs.tar.gz",
                        "fluent-speech-corpus.zip",
                    )
                },
                unpacked=_FLUENT,
                dabs=f"speech/fluent_speech/{_FLUENT}",
                metamae=f"speech/{_FLUENT}",
            ),
            contents={"clips": Content(r"wavs/speakers/[^/]+/[^/]+\.wav|data/train_data\.csv")},
            totals={"spectrogram": 30_043},
            prepare=partial(_prepare_fluent, task=task),
            task=Task.of_classes(lists.FLUENT[task]),
            split="training and validation rows against test rows, the official ones.",
            scaling=_decibels(-31.809, 13.127),
        )
        for task in lists.FLUENT
    ),
    _source(
        name="google_speech",
        origin="speech_commands_v0.02.tar.gz from TensorFlow's data sets",
        layouts=_clips(
            {"clips": "speech_commands_v0.02.tar.gz"},
            unpacked="speech_commands_v0.02",
            dabs="speech/google_speech",
        ),
        contents={"clips": Content(rf"({'|'.join(lists.COMMANDS)})/[^/]+\.wav", 105_835)},
        totals={"spectrogram": 105_835},
        prepare=_prepare_google_speech,
        task=Task.of_classes(lists.COMMANDS),
        split="testing_list.txt against all other clips.",
        scaling=_decibels(-46.847, 19.151),
        options={
            "train": Option(
                ("disjoint", "as_published"),
                "disjoint: no test clip is trained on; as_published: all of them are, and "
                "validation clips twice, as in the numbers of the paper",
            )
        },
    ),
    _source(
        name="voxceleb1",
        origin="vox1_dev_wav.zip (its parts joined), vox1_test_wav.zip and iden_split.txt from the "
        "Visual Geometry Group, Oxford",
        layouts=_clips(
            {"clips": "vox1_dev_wav.zip", "more": "vox1_test_wav.zip", "split": "iden_split.txt"},
            unpacked="voxceleb1",
            dabs="speech/voxceleb1",
        ),
        contents={
            "clips": Content(r"id1\d{4}/[^/]+/\d{5}\.wav"),
            "more": Content(r"id1\d{4}/[^/]+/\d{5}\.wav"),
            "split": Content(r"iden_split\.txt"),
        },
        totals={"spectrogram": 153_516},
        prepare=_prepare_voxceleb1,
        task=Task.of_classes(),
        split="identification: parts 1 and 2 of iden_split.txt against part 3.",
        scaling=_decibels(-37.075, 19.776),
    ),
)
