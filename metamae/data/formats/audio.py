"""Sound files: the head and the tail of a clip, decoded by libsndfile."""

from __future__ import annotations

import io
from dataclasses import dataclass

from metamae.data.dataset import Array
from metamae.data.formats.libraries import need_module
from metamae.data.formats.mel import SAMPLES, fit_length
from metamae.errors import DataError


@dataclass(frozen=True)
class Clip:
    """The first channel of a sound file at its own rate.

    Attributes:
        rate: Samples per second.
        head: The first samples, zeros appended to a short clip, ``(SAMPLES,)``.
        tail: The last samples of a clip that is longer, else ``None``.
    """

    rate: int
    head: Array
    tail: Array | None


def read_clip(content: bytes, name: str, *, tail: bool = False) -> Clip:
    """Decode WAV, FLAC or whatever else libsndfile knows; only what is needed of long clips.

    Args:
        content: The file.
        name: What the file is called in an error.
        tail: Whether to read the tail of a long clip too.

    Raises:
        DataError: a file that is damaged or holds no sound.
        MissingLibraryError: the library is not installed.
    """
    soundfile = need_module("soundfile")
    refuse_cut_short(content, name)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            head = file.read(SAMPLES, dtype="float32", always_2d=True)[:, 0]
            last = None
            if tail and file.frames > SAMPLES:
                file.seek(file.frames - SAMPLES)
                last = file.read(SAMPLES, dtype="float32", always_2d=True)[:, 0]
            rate = int(file.samplerate)
    except soundfile.SoundFileError as fault:
        raise DataError(f"expected sound in {name}, got {len(content)} bytes: {fault}") from fault
    if not len(head):
        raise DataError(f"expected sound in {name}, got a file without samples")
    return Clip(rate, fit_length(head), last)


def refuse_cut_short(content: bytes, name: str) -> None:
    """Raise ``DataError`` for a WAV file shorter than it says: readers do not complain."""
    declared = int.from_bytes(content[4:8], "little") + 8
    known = content[:4] == b"RIFF" and declared not in (8, 0xFFFFFFFF + 8)  # these mean "unknown"
    if known and len(content) < declared - 1:  # some writers count a padding byte they do not write
        raise DataError(f"expected {declared} bytes in {name}, got {len(content)}: it is cut short")
