"""Speech: LibriSpeech for pretraining and probing, and six tasks to transfer to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from metamae.data.dataset import Affine, Array, Task
from metamae.data.formats.audio import read_clip
from metamae.data.formats.mel import MELS, log_mel
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Layout, Option, Source, packed_or_not
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
    array = _array(writer, "pretraining")
    index: list[int] = []
    for subset in PRETRAINING:
        view = View.tails(_UTTERANCE, raw.bundle(subset))
        names = sorted(view.members)
        rows = store(writer, array, view, names, partial(spectrograms, tail=True))
        index += [row for name in names if name in rows for row in rows[name]]
    writer.partition("pretrain", {"spectrogram": "pretraining"}, index=np.array(index, np.int64))
    view = View.tails(_UTTERANCE, raw.bundle("dev-clean"))
    _save(writer, lists.librispeech(view.members), view)


def _prepare_audiomnist(raw: Raw, writer: Writer) -> None:
    view = View.tails(r"\d\d/\d_\d\d_\d+\.wav", raw.bundle("clips"))
    _save(writer, lists.audiomnist(view.members), view)


def _prepare_fluent(raw: Raw, writer: Writer, task: str) -> None:
    bundle = raw.bundle("clips")
    view = View.around("data/train_data.csv", bundle)
    names = ("train_data.csv", "valid_data.csv", "test_data.csv")
    contents = tables(bundle, *(f"data/{name}" for name in names))
    texts = {name: text.decode("utf-8-sig") for name, text in zip(names, contents, strict=True)}
    _save(writer, lists.fluent(texts, task), view)


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


def _source(
    name: str,
    prepare: Callable[[Raw, Writer], None],
    origin: str,
    split: str,
    layouts: tuple[Layout, ...],
    *,
    mean: float,
    deviation: float,
    classes: tuple[str, ...] = (),
    options: Mapping[str, Option] | None = None,
) -> Source:
    """One set; its decibels are scaled by the published mean and deviation."""
    pair = (np.full((), value, np.float32) for value in (mean, deviation))
    return Source(
        name=name,
        modality="speech",
        origin=origin,
        inputs=_inputs,
        token_size=(16, 16),
        layouts=layouts,
        prepare=prepare,
        task=Task(kind="classification", metric="accuracy", classes=classes),
        pretrained_on="librispeech",
        split=split,
        scaling={"spectrogram": Affine(*pair)},
        options=options or {},
        modules=("soundfile",),
    )


_clips = partial(packed_or_not, "clips")


def _subsets(kind: str, where: str) -> Layout:
    return Layout(kind, {subset: where.format(subset) for subset in (*PRETRAINING, "dev-clean")})


_FLUENT = "fluent_speech_commands_dataset"

SOURCES = (
    _source(
        "librispeech",
        _prepare_librispeech,
        "train-clean-100, train-clean-360, train-other-500 and dev-clean (.tar.gz) from OpenSLR 12",
        "pretraining on the three training subsets, head or tail of long clips by a coin; probe on "
        "the speakers of dev-clean, each cut 80/20 with one RandomState(42).",
        (
            _subsets("published", "{}.tar.gz"),
            _subsets("unpacked", "LibriSpeech/{}"),
            _subsets("dabs", "speech/librispeech/LibriSpeech/{}"),
            _subsets("metamae", "speech/LibriSpeech/{}"),
        ),
        mean=-22.924,
        deviation=12.587,
    ),
    _source(
        "audiomnist",
        _prepare_audiomnist,
        "the AudioMNIST repository (its folder, or the zip archive of its main branch)",
        "by speaker: 12 for testing, the other 48 for training.",
        _clips(
            {"clips": "AudioMNIST-master.zip"},
            unpacked="AudioMNIST",
            dabs="speech/AudioMNIST",
        ),
        mean=-90.293,
        deviation=11.799,
        classes=tuple("0123456789"),
    ),
    *(
        _source(
            f"fluent_{task}",
            partial(_prepare_fluent, task=task),
            "the Fluent Speech Commands archive of Fluent.ai",
            "training and validation rows against test rows, the official ones.",
            _clips(
                {"clips": f"{_FLUENT}.zip"},
                unpacked=_FLUENT,
                dabs=f"speech/fluent_speech/{_FLUENT}",
                metamae=f"speech/{_FLUENT}",
            ),
            mean=-31.809,
            deviation=13.127,
            classes=lists.FLUENT[task],
        )
        for task in lists.FLUENT
    ),
    _source(
        "google_speech",
        _prepare_google_speech,
        "speech_commands_v0.02.tar.gz from TensorFlow's data sets",
        "testing_list.txt against all other clips.",
        _clips(
            {"clips": "speech_commands_v0.02.tar.gz"},
            unpacked="speech_commands_v0.02",
            dabs="speech/google_speech",
        ),
        mean=-46.847,
        deviation=19.151,
        classes=lists.COMMANDS,
        options={
            "train": Option(
                ("disjoint", "as_published"),
                "disjoint: no test clip is trained on; as_published: all of them are, and "
                "validation clips twice, as in the numbers of the paper",
            )
        },
    ),
    _source(
        "voxceleb1",
        _prepare_voxceleb1,
        "vox1_dev_wav.zip (its parts joined), vox1_test_wav.zip and iden_split.txt from the Visual "
        "Geometry Group, Oxford",
        "identification: parts 1 and 2 of iden_split.txt against part 3.",
        _clips(
            {"clips": "vox1_dev_wav.zip", "more": "vox1_test_wav.zip", "split": "iden_split.txt"},
            unpacked="voxceleb1",
            dabs="speech/voxceleb1",
        ),
        mean=-37.075,
        deviation=19.776,
    ),
)
