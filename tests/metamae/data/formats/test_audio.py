"""Clips of any length, rate and number of channels; damage is named."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from metamae import DataError
from metamae.data.dataset import Array
from metamae.data.formats.audio import read_clip
from metamae.data.formats.mel import SAMPLES
from metamae.errors import MissingLibraryError
from tests.metamae.data.packing import encode_sound as encode

pytest.importorskip("soundfile", reason="soundfile is not installed")


def ramp(length: int) -> Array:
    """Every sample has a value of its own kind: its number, in sixteenths of the range."""
    return ((np.arange(length) % 30_000) / 32768).astype(np.float32)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("length", [1, 5_000, SAMPLES, SAMPLES + 7])
def test_head_and_tail(kind: str, rate: int, length: int) -> None:
    wave = ramp(length)
    clip = read_clip(encode(wave, rate, kind), "x", tail=True)
    assert clip.rate == rate
    kept = min(length, SAMPLES)
    assert clip.head.shape == (SAMPLES,)
    assert clip.head.dtype == np.float32
    assert np.array_equal(clip.head[:kept], wave[:kept])
    assert not clip.head[kept:].any()
    if length > SAMPLES:
        assert clip.tail is not None
        assert np.array_equal(clip.tail, wave[-SAMPLES:])
    else:
        assert clip.tail is None


def test_the_tail_is_read_only_when_asked() -> None:
    assert read_clip(encode(ramp(SAMPLES + 7)), "x").tail is None


def test_the_first_channel_counts() -> None:
    stereo = np.stack([ramp(900), -ramp(900)], axis=1)
    assert np.array_equal(read_clip(encode(stereo), "x").head[:900], ramp(900))


SOUND = encode(ramp(40_000), kind="FLAC")
WAV = encode(ramp(40_000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"expected sound in a/x\.wav, got 0 bytes"),
        (b"not a sound", r"expected sound in a/x\.wav, got 11 bytes"),
        (SOUND[: len(SOUND) // 2], r"expected sound in a/x\.wav, got \d+ bytes: .*lost sync"),
        (WAV[: len(WAV) // 2], r"expected 80044 bytes in a/x\.wav, got 40022: it is cut short"),
        (encode(ramp(0)), r"expected sound in a/x\.wav, got a file without samples"),
    ],
)
def test_damage_names_the_file(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_clip(content, "a/x.wav")


def test_a_length_that_is_unknown_is_no_damage() -> None:
    """Tools that write to a pipe leave a placeholder where the length belongs."""
    streamed = WAV[:4] + b"\xff\xff\xff\xff" + WAV[8:]
    assert np.array_equal(read_clip(streamed, "x").head[:40_000], ramp(40_000))


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'metamae\[data\]'"):
        read_clip(WAV, "x")
