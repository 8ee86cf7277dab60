"""A folder of sounds becomes log-mel spectrograms, as those of the speech data sets."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from scipy.io import wavfile

from metamae.data.dataset import Array
from metamae.data.formats.audio import read_clip, refuse_cut_short
from metamae.data.formats.limits import WHOLE
from metamae.data.formats.mel import MELS, SAMPLES, count_frames, fit_length, log_mel
from metamae.data.own.folders import Folder
from metamae.errors import DataError, is_systems, reason_of

SPECTROGRAM = {"reader": "log_mel", "samples": SAMPLES, "mels": MELS}
"""What a recipe says of sound; another revision's would be refused."""
STEP = 16
"""Widths of pictures are its multiples, from twice that on."""


def read_sounds(folder: Folder, frames: int | None = None) -> tuple[Array, Folder, int, str]:
    """Every clip as a picture, float16 ``(N, 1, 224, frames)``.

    Silence after the longest clip is cut off: tokens of it would be all that short clips have.

    Args:
        folder: The files.
        frames: Width of the pictures, of a run; ``None`` chooses what the longest clip fills.

    Returns:
        The pictures, the folder without files that were left out, the width, and what was seen.

    Raises:
        DataError: files that cannot be read.
        MissingLibraryError: FLAC without the library for it.
    """
    made, whole = folder.read_each(_read)
    rates = sorted({rate for rate, _, _ in made})
    longest = max(count for _, count, _ in made)
    width = frames or min(MELS, max(2 * STEP, -(-longest // STEP) * STEP))
    seen = f"{len(made)} clips at {', '.join(f'{rate} Hz' for rate in rates[:4])}"
    if len(rates) > 1:
        seen += " (differing rates are not resampled: bands follow each clip's own)"
    seen += f"; pictures of {MELS} bands and {width} frames"
    cut = sum(count > width for _, count, _ in made)
    if cut:
        seen += f", as the run has them: {cut} longer clips are cut"
    return np.stack([picture[:, :, :width] for _, _, picture in made]), whole, width, seen


def _read(content: bytes, name: str) -> tuple[int, int, Array]:
    if len(content) > WHOLE:
        raise DataError(f"expected at most {WHOLE >> 20} MiB in {name}, got {len(content)} bytes")
    if name.lower().endswith(".wav"):
        rate, wave = read_wave(content, name)
    else:
        clip = read_clip(content, name)
        rate, wave = clip.rate, clip.head
    picture = log_mel(wave, rate)
    if not np.isfinite(picture).all():
        raise DataError(f"expected finite samples in {name}, got others")
    return rate, count_frames(wave), picture.astype(np.float16)[np.newaxis]


def read_wave(content: bytes, name: str) -> tuple[int, Array]:
    """Rate and head of the first channel of a WAV file, without further libraries.

    Raises:
        DataError: damage, or no samples.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from scipy.io import wavfile
        >>> from metamae.data.own.sound import read_wave
        >>> file = io.BytesIO()
        >>> wavfile.write(file, 8000, np.array([0, 16384], np.int16))
        >>> rate, wave = read_wave(file.getvalue(), "a.wav")
        >>> rate, wave[:3].tolist()
        (8000, [0.0, 0.5, 0.0])
    """
    refuse_cut_short(content, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no sound
            rate, samples = wavfile.read(io.BytesIO(content))
    # What damage makes of a header has no common name.
    except Exception as fault:
        if is_systems(fault) or isinstance(fault, MemoryError):
            raise
        raise DataError(
            f"expected sound in {name}, got {len(content)} bytes: {reason_of(fault)}"
        ) from fault
    wave = samples[:SAMPLES] if samples.ndim == 1 else samples[:SAMPLES, 0]
    if not len(wave) or rate < 1:
        raise DataError(f"expected sound in {name}, got a file without samples")
    return int(rate), fit_length(_to_unit(wave))


def _to_unit(wave: Array) -> Array:
    """Samples between -1 and 1: bytes are unsigned, wider integers signed and left-aligned."""
    if wave.dtype == np.uint8:
        return ((wave.astype(np.float32)) - 128) / 128
    if wave.dtype.kind == "i":
        return (wave.astype(np.float64) / -float(np.iinfo(wave.dtype).min)).astype(np.float32)
    return wave.astype(np.float32)


def check_spectrogram(recipe: dict[str, Any]) -> None:
    """Raise ``DataError`` unless a run's spectrograms are those that are made here."""
    made = {key: recipe.get(key) for key in SPECTROGRAM}
    if made != SPECTROGRAM:
        raise DataError(f"expected spectrograms as {SPECTROGRAM}, the run had {made}")
