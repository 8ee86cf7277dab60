"""The speech front end equals an independent reference, at every rate and clip length."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from metamae.data.dataset import Array
from metamae.data.formats.mel import SAMPLES, fit_length, log_mel, mel_filters


def hertz_to_mel(hertz: float) -> float:
    """Slaney's scale from its two published halves, written apart from the package."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def reference(wave: Array, rate: int) -> Array:
    """The same picture by scipy's short-time transform and a bank built filter by filter."""
    transform = signal.ShortTimeFFT(
        signal.get_window("hann", 2048), hop=672, fs=rate, fft_mode="onesided"
    )
    spectrum = transform.stft(np.asarray(wave, np.float64), p0=0, p1=224)
    mels = np.linspace(0, hertz_to_mel(rate / 2), 226)
    grid = np.linspace(0, 40000, 2_000_001)
    edges = np.interp(mels, [hertz_to_mel(f) for f in grid[::200]], grid[::200])
    frequencies = np.arange(1025) * rate / 2048
    bank = np.zeros((224, 1025))
    for number in range(224):
        low, centre, high = edges[number : number + 3]
        bank[number] = np.interp(frequencies, [low, centre, high], [0, 2 / (high - low), 0])
    power = bank @ np.abs(spectrum) ** 2
    decibels = 10 * np.log10(np.maximum(power**2, 1e-10))
    return np.maximum(decibels, decibels.max() - 80)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("length", [1_000, SAMPLES, SAMPLES + 20_000])
def test_equals_the_reference(rate: int, length: int) -> None:
    random = np.random.default_rng(length)
    wave = fit_length((0.1 * random.standard_normal(length)).astype(np.float32))
    picture = log_mel(wave, rate)
    assert picture.shape == (224, 224)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, reference(wave, rate), atol=2e-2)


def test_equals_librosa_where_it_is_installed() -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    wave = np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32)
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16_000, hop_length=672, n_mels=224, pad_mode="constant"
    )
    np.testing.assert_allclose(log_mel(wave, 16_000), librosa.amplitude_to_db(mel), atol=1e-3)


def test_decibels_are_doubled_and_the_range_is_eighty() -> None:
    """Ten times the amplitude is 20 dB of power, and 40 here; silence stays at the floor."""
    wave = 0.01 * np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32)
    quiet, loud = log_mel(wave, 16_000), log_mel(10 * wave, 16_000)
    audible = quiet > quiet.min()
    np.testing.assert_allclose((loud - quiet)[audible & (quiet > -99)], 40, atol=1e-3)
    assert np.unique(log_mel(np.zeros(SAMPLES), 16_000)).tolist() == [-100]


def test_a_tone_is_in_the_band_of_its_frequency() -> None:
    """The axis follows the file's own rate: the same tone is lower in a wider picture."""
    for rate in (16_000, 48_000):
        wave = np.sin(2 * np.pi * 440 / rate * np.arange(SAMPLES))
        band = log_mel(wave, rate)[:, 100].argmax()
        expected = hertz_to_mel(440) / hertz_to_mel(rate / 2) * 225 - 1
        assert abs(band - expected) < 1


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_filters_have_unit_area(rate: int) -> None:
    bank = mel_filters(rate)
    assert bank.shape == (224, 1025)
    assert (bank >= 0).all()
    wide = bank[150:].astype(np.float64)  # many frequencies a filter: the sum is an integral
    np.testing.assert_allclose(wide.sum(1) * rate / 2048, 1, atol=0.1)


@pytest.mark.parametrize(
    ("length", "tail", "first", "last"),
    [
        (3, False, 0, 0),
        (SAMPLES, False, 0, SAMPLES - 1),
        (SAMPLES, True, 0, SAMPLES - 1),
        (SAMPLES + 9, False, 0, SAMPLES - 1),
        (SAMPLES + 9, True, 9, SAMPLES + 8),
    ],
)
def test_a_clip_is_cut_or_filled_to_length(length: int, tail: bool, first: int, last: int) -> None:
    cut = fit_length(np.arange(length), tail=tail)
    assert len(cut) == SAMPLES
    assert (cut[0], cut[-1]) == (first, last)


def test_half_precision_keeps_the_picture() -> None:
    """Prepared pictures are float16: the error is far below the spread of any speech set."""
    picture = log_mel(0.3 * np.random.default_rng(0).standard_normal(SAMPLES), 16_000)
    assert np.abs(picture.astype(np.float16).astype(np.float32) - picture).max() < 0.04
