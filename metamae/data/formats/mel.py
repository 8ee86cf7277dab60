"""Log-mel spectrograms of speech: one square picture of 224 x 224 per clip.

The transform is forty lines of NumPy rather than librosa, which would bring numba, a compiler and a
dozen packages for one filter bank. A test holds it against an independent reference, and against
librosa itself where that is installed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from metamae.data.dataset import Array

SAMPLES = 150_526
"""Samples of a clip: 9.4 s at 16 kHz, 3.1 s at 48 kHz."""

MELS = 224
"""Mel bands; the hop gives as many frames."""

_FFT, _HOP = 2048, 672
_FLOOR, _RANGE = 1e-10, 80.0  # of the squared power; in decibels


def log_mel(wave: Array, rate: int) -> Array:
    r"""The picture of one clip, float32 ``(224, 224)``: bands, low to high, by frames.

    .. math::
        P = M\,|\mathrm{STFT}(x)|^2, \quad
        D = 10 \log_{10} \max(P^2, 10^{-10}), \quad
        D \leftarrow \max(D, \max(D) - 80)

    with a Hann window of 2048 samples, centred frames every 672 samples (zeros beyond the ends) and
    224 Slaney mel filters of unit area up to half the sampling rate. :math:`P` is squared once
    more, as in the published pipeline, so decibels are doubled and the 80 dB span 40 dB of power.
    Clips are never resampled: the filters follow the clip's own rate.

    Args:
        wave: Samples between -1 and 1, ``(SAMPLES,)``; see :func:`fit_length`.
        rate: Samples per second.

    Example:
        >>> import numpy as np
        >>> from metamae.data.formats.mel import SAMPLES, log_mel
        >>> tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(SAMPLES))
        >>> picture = log_mel(tone, 16000)
        >>> picture.shape, float(picture.max() - picture.min())
        ((224, 224), 80.0)
    """
    padded = np.pad(np.asarray(wave, np.float32), _FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    spectrum = fft.rfft(frames * _window(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    mel = mel_filters(rate) @ power.T
    decibels = 10 * np.log10(np.maximum(mel.astype(np.float64) ** 2, _FLOOR))
    clipped: Array = np.maximum(decibels, decibels.max() - _RANGE).astype(np.float32)
    return clipped


def fit_length(wave: Array, *, tail: bool = False) -> Array:
    """Cut a clip to :data:`SAMPLES` from its head or its tail, or append zeros.

    Example:
        >>> import numpy as np
        >>> from metamae.data.formats.mel import SAMPLES, fit_length
        >>> long = np.arange(SAMPLES + 5)
        >>> int(fit_length(long)[0]), int(fit_length(long, tail=True)[0])
        (0, 5)
    """
    if len(wave) >= SAMPLES:
        return wave[-SAMPLES:] if tail else wave[:SAMPLES]
    padded: Array = np.pad(wave, (0, SAMPLES - len(wave)))
    return padded


def count_frames(wave: Array) -> int:
    """Frames of a clip's picture until nothing but the silence after its last sample follows.

    Example:
        >>> import numpy as np
        >>> from metamae.data.formats.mel import SAMPLES, count_frames, fit_length
        >>> count_frames(fit_length(np.ones(16000))), count_frames(np.ones(SAMPLES))
        (26, 224)
    """
    sounding = np.flatnonzero(wave)
    length = int(sounding[-1]) + 1 if len(sounding) else 0
    return min(MELS, -(-(length + _FFT // 2) // _HOP))


@lru_cache(maxsize=8)
def mel_filters(rate: int) -> Array:
    """Triangular filters ``(224, 1025)`` on Slaney's mel scale, each of unit area in hertz."""
    frequencies = np.linspace(0, rate / 2, _FFT // 2 + 1)
    edges = _to_hertz(np.linspace(0, _to_mel(rate / 2), MELS + 2))
    low, centre, high = (edges[shift : shift + MELS, np.newaxis] for shift in range(3))
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    triangles = np.maximum(np.minimum(rising, falling), 0)
    filters: Array = (triangles * 2 / (high - low)).astype(np.float32)
    return filters


# Slaney's scale: 3 mel per 200 Hz up to 1000 Hz, then 27 mel per factor of 6.4.
_LINEAR, _KNEE, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    if hertz < _KNEE:
        return hertz / _LINEAR
    return float(_KNEE / _LINEAR + np.log(hertz / _KNEE) / _LOG_STEP)


def _to_hertz(mel: Array) -> Array:
    knee = _KNEE / _LINEAR
    above = _KNEE * np.exp(_LOG_STEP * np.maximum(mel - knee, 0))
    hertz: Array = np.where(mel < knee, mel * _LINEAR, above)
    return hertz


@lru_cache(maxsize=1)
def _window() -> Array:
    """A periodic Hann window."""
    window: Array = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)).astype(np.float32)
    return window
