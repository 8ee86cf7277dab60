"""WordPiece, as bert-base-uncased defines it: text becomes indices into a vocabulary file.

Written here because it is eighty lines, while the ``tokenizers`` package asks for a download client
and all that it needs. A test holds it against that package where it is installed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from metamae.errors import DataError

WORDS = 30_522
"""Entries of the vocabulary of bert-base-uncased."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LONGEST_WORD = 100


@dataclass(frozen=True)
class WordPiece:
    """Splits text into pieces of a vocabulary.

    Lower case, accents and control characters dropped, words cut at white space, punctuation and
    Chinese characters; each word becomes the longest pieces, from left to right, or ``[UNK]``.

    Attributes:
        vocabulary: Pieces in the order of their indices; inner pieces start with ``##``.

    Example:
        >>> from metamae.data.formats.wordpiece import WordPiece
        >>> pieces = WordPiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "?"))
        >>> pieces.encode("A dogs", length=6), pieces.encode("dog", "a?", length=7)
        ([2, 4, 5, 6, 3, 0], [2, 5, 3, 4, 7, 3, 0])
    """

    vocabulary: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the special entries are there and that no entry occurs twice."""
        missing = [name for name in _SPECIAL if name not in self._index]
        if missing:
            raise DataError(f"expected {', '.join(missing)} in the vocabulary, found none")
        if len(self._index) != len(self.vocabulary):
            count = len(self.vocabulary) - len(self._index)
            raise DataError(f"expected different entries in the vocabulary, {count} occur twice")

    @classmethod
    def read(cls, path: Path) -> WordPiece:
        """Read a vocabulary file: one piece a line, in the order of their indices.

        Raises:
            DataError: a missing file, or one with another number of entries.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as fault:
            raise DataError(
                f"expected the vocabulary of bert-base-uncased in {path}: {fault}; put its "
                "vocab.txt there, as published with the model"
            ) from fault
        pieces = tuple(line.rstrip("\r") for line in lines)
        pieces = pieces[:-1] if pieces[-1] == "" else pieces
        if len(pieces) != WORDS:
            raise DataError(
                f"expected {WORDS} entries in the vocabulary {path}, got {len(pieces)}; it has "
                "to be the vocab.txt of bert-base-uncased"
            )
        return cls(pieces)

    def encode(self, text: str, pair: str | None = None, *, length: int) -> list[int]:
        """``[CLS] text [SEP]`` or ``[CLS] text [SEP] pair [SEP]``, cut and padded to ``length``.

        A text that is too long loses its end; of a pair the longer part does, piece by piece.
        """
        first = self.pieces(text)
        second = [] if pair is None else self.pieces(pair)
        room = length - (2 if pair is None else 3)
        while len(first) + len(second) > room:
            (first if len(first) > len(second) else second).pop()
        pad, _, start, end = (self._index[name] for name in _SPECIAL)
        joined = [start, *first, end, *([] if pair is None else [*second, end])]
        return joined + [pad] * (length - len(joined))

    def pieces(self, text: str) -> list[int]:
        """Indices of the pieces of a text, without special entries."""
        return [index for word in _words(text) for index in self._split(word)]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    def _split(self, word: str) -> list[int]:
        unknown = [self._index["[UNK]"]]
        if len(word) > _LONGEST_WORD:
            return unknown
        indices: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for stop in range(len(word), start, -1):
                if (index := self._index.get(prefix + word[start:stop])) is not None:
                    break
            else:
                return unknown
            indices.append(index)
            start = stop
        return indices


def _words(text: str) -> Iterator[str]:
    """Lower-case words and single punctuation marks."""
    spaced = "".join(_clean(letter) for letter in text)
    plain = (x for x in unicodedata.normalize("NFD", spaced) if unicodedata.category(x) != "Mn")
    word = ""
    for letter in "".join(plain).lower():
        if letter.isspace() or _is_punctuation(letter):
            if word:
                yield word
            word = ""
            if not letter.isspace():
                yield letter
        else:
            word += letter
    if word:
        yield word


def _clean(letter: str) -> str:
    if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
        return " "
    if letter in "\0\ufffd" or unicodedata.category(letter) in ("Cc", "Cf", "Co"):
        return ""
    return f" {letter} " if _is_chinese(ord(letter)) else letter


def _is_punctuation(letter: str) -> bool:
    """Unicode's punctuation, and every mark of ASCII that is neither letter nor digit."""
    if letter.isascii():
        return 32 < ord(letter) < 127 and not letter.isalnum()
    return unicodedata.category(letter).startswith("P")


_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _is_chinese(code: int) -> bool:
    return any(low <= code <= high for low, high in _CHINESE)
