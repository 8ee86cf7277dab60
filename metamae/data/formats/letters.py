"""Sequences of letters as indices."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Array
from metamae.errors import DataError

_UNKNOWN = 255


class Letters:
    """An alphabet; the index of a letter is its place.

    Example:
        >>> from metamae.data.formats.letters import Letters
        >>> Letters("ACGT").encode("GATTACA").tolist()
        [2, 0, 3, 3, 0, 1, 0]
    """

    def __init__(self, letters: str) -> None:
        """Build the table."""
        self.letters = letters
        self.table = np.full(256, _UNKNOWN, np.uint8)
        self.table[np.frombuffer(letters.encode("ascii"), np.uint8)] = np.arange(len(letters))

    def encode(self, text: str) -> Array:
        """Indices of a text, ``(len(text),)`` uint8.

        Raises:
            DataError: a letter outside the alphabet, with its place.
        """
        places = self.table[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
        if (places == _UNKNOWN).any():
            place = int(np.argmax(places == _UNKNOWN))
            raise DataError(
                f"expected letters among {self.letters}, got {text[place]!r} at place {place + 1}"
            )
        return places

    def encode_to(self, text: str, length: int, pad: str) -> Array:
        """Indices of the first ``length`` letters, filled with ``pad`` at the end.

        Example:
            >>> from metamae.data.formats.letters import Letters
            >>> Letters("XAR").encode_to("RA", 4, "X").tolist()
            [2, 1, 0, 0]
        """
        return self.encode(text[:length].ljust(length, pad))
