"""Speech: which clips of each published archive are read, and how one becomes pictures of sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metamae.data.dataset import Affine, Array
from metamae.data.sources import speech_lists as lists
from metamae.data.sources.audio import read_clip
from metamae.data.sources.files import Files
from metamae.data.sources.listing import Halves, Listing
from metamae.data.sources.mel import MELS, log_mel
from metamae.inputs import Image, Inputs

PRETRAINING = ("train-clean-100", "train-clean-360", "train-other-500")
"""Subsets of LibriSpeech that are pretrained on, in their order."""

STATISTICS = {
    "librispeech": (-22.924, 12.587),
    "audiomnist": (-90.293, 11.799),
    "fluent": (-31.809, 13.127),
    "google_speech": (-46.847, 19.151),
    "voxceleb1": (-37.075, 19.776),
}
"""Published mean and deviation of the decibels, one pair for each data set."""


def inputs(token_size: Sequence[int] = ()) -> Inputs:
    """The one input of every speech set: a spectrogram in patches of 16 x 16."""
    height, width = (token_size[0], token_size[-1]) if token_size else (16, 16)
    return (Image(name="spectrogram", channels=1, height=MELS, width=MELS, patch=(height, width)),)


def scaling(name: str) -> Affine:
    """The published standardisation of one set."""
    mean, deviation = STATISTICS[name]
    return Affine(np.float32(mean) * np.ones(()), np.float32(deviation) * np.ones(()))


@dataclass(frozen=True)
class Clips:
    """Labelled clips and how to read one of them by its name."""

    halves: Halves
    read: Callable[[str], Array]


def spectrograms(files: Files, name: str, *, tail: bool = False) -> Array:
    """Pictures of one clip, float16 ``(1 or 2, 1, 224, 224)``: its head, and the tail if longer.

    Half precision holds these decibels to 0.03, a four-hundredth of their deviation.

    Args:
        files: Where the clip is.
        name: Its name.
        tail: Whether long clips have two pictures; otherwise the head alone counts.
    """
    clip = read_clip(files.read(name), name, tail=tail)
    waves = [clip.head] if clip.tail is None else [clip.head, clip.tail]
    pictures = np.stack([log_mel(wave, clip.rate) for wave in waves])
    return pictures[:, np.newaxis].astype(np.float16)


def _clips(halves: Halves, files: Files) -> Clips:
    return Clips(halves, lambda name: spectrograms(files, name)[0])


def librispeech_pretraining(files: Files, subset: str) -> tuple[Listing, Files]:
    """Clips of one of the three training subsets, by name, and where they are."""
    inside = files.below(subset)
    return Listing(sorted(inside.ending(".flac"))), inside


def librispeech(files: Files) -> Clips:
    """dev-clean, for speaker identification."""
    subset = files.below("dev-clean")
    return _clips(lists.librispeech(subset.ending(".flac")), subset)


def audiomnist(files: Files) -> Clips:
    """Spoken digits of 60 speakers, mostly at 48 kHz."""
    names = [name for name in files.ending(".wav") if _DIGIT.search(f"/{name}")]
    return _clips(lists.audiomnist(names), files)


def fluent(files: Files, task: str) -> Clips:
    """Fluent Speech Commands, for one of its three tasks."""
    root = files.around("data/train_data.csv")
    tables = {
        name: root.read(f"data/{name}").decode("utf-8-sig")
        for name in ("train_data.csv", "valid_data.csv", "test_data.csv")
    }
    return _clips(lists.fluent(tables, task), root)


def google_speech(files: Files, *, as_published: bool = False) -> Clips:
    """Google Speech Commands v0.02; see :func:`metamae.data.sources.speech_lists.google_speech`."""
    root = files.around("testing_list.txt")
    halves = lists.google_speech(
        (name for name in root.ending(".wav") if name.count("/") == 1),
        root.lines("testing_list.txt"),
        root.lines("validation_list.txt"),
        as_published=as_published,
    )
    return _clips(halves, root)


def voxceleb1(files: Files) -> Clips:
    """VoxCeleb1, for speaker identification by its official split."""
    root = files.around("iden_split.txt")
    return _clips(lists.voxceleb(root.lines("iden_split.txt")), root.below("wav"))


_DIGIT = re.compile(r"/\d\d/\d_\d\d_\d+\.wav$")
