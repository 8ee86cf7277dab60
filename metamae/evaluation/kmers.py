"""Counts of short words of a sequence: what is computed by hand where sequences are classified."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array

MOST_WORDS = 2048
LONGEST = 6


def choose_word_length(symbols: int, length: int) -> int:
    """Symbols of a word: as many, up to six, as there are at most 2,048 different words of.

    Example:
        >>> from metamae.evaluation.kmers import choose_word_length
        >>> choose_word_length(4, 64), choose_word_length(20, 64), choose_word_length(5000, 12)
        (5, 2, 1)
    """
    fitting = [k for k in range(1, min(LONGEST, length) + 1) if symbols**k <= MOST_WORDS]
    return max(fitting, default=1)


def count_words(sequences: Array, symbols: Array, length: int) -> Array:
    """Share of every word among the words of a sequence.

    Words with a symbol that is not among ``symbols`` (padding, unknown) are not counted.

    Args:
        sequences: ``(N, L)`` indices.
        symbols: Indices of the symbols that words consist of.
        length: Symbols of a word, ``k``.

    Returns:
        ``(N, len(symbols) ** k)``, float32.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.kmers import count_words
        >>> count_words(np.array([[0, 1, 1, 9]]), np.array([0, 1]), 2).tolist()
        [[0.0, 0.5, 0.0, 0.5]]
    """
    place = np.full(int(max(sequences.max(initial=0), symbols.max(initial=0))) + 1, -1)
    place[symbols] = np.arange(len(symbols))
    digits = place[sequences]  # (N, L)
    windows = np.lib.stride_tricks.sliding_window_view(digits, length, axis=1)  # (N, L - k + 1, k)
    words = windows @ (len(symbols) ** np.arange(length)[::-1])
    counted = (windows >= 0).all(-1)
    shares = np.zeros((len(sequences), len(symbols) ** length), np.float32)
    rows, _ = np.nonzero(counted)
    np.add.at(shares, (rows, words[counted]), 1)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    return shares
