"""WordPiece does to text what bert-base-uncased does, odd text included."""

from __future__ import annotations

from pathlib import Path

import pytest

from metamae import DataError
from metamae.data.formats.wordpiece import WORDS, WordPiece

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PIECES = WordPiece(
    (*SPECIAL, "a", "cafe", "un", "##aff", "##able", "'", "s", "dog", "中", "?", "$", "5", "##0")
)


def pieces(text: str) -> list[str]:
    return [PIECES.vocabulary[index] for index in PIECES.pieces(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \t\n ", []),
        ("A dog", ["a", "dog"]),
        ("unaffable", ["un", "##aff", "##able"]),
        ("unaffableX", ["[UNK]"]),  # a word is unknown as a whole
        ("Café", ["cafe"]),
        ("cafe\u0301", ["cafe"]),  # a combining accent
        ("dog's dog?", ["dog", "'", "s", "dog", "?"]),
        ("dog\u2019s", ["dog", "[UNK]", "s"]),  # a curly quote is punctuation as well
        ("$50", ["$", "5", "##0"]),
        ("a中a", ["a", "中", "a"]),
        ("do\u200bg", ["dog"]),  # a zero-width space is no space
        ("a\u00a0a\u3000a\u2028a", ["a"] * 4),
        ("a\x00\ufffd\x07", ["a"]),
        ("[SEP]", ["[UNK]", "[UNK]", "[UNK]"]),  # text cannot smuggle in a special entry
        ("a" * 101, ["[UNK]"]),
    ],
)
def test_pieces(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_equals_the_tokenizers_package_where_it_is_installed() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = {piece: index for index, piece in enumerate(PIECES.vocabulary)}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    peer = tokenizers.Tokenizer(model)
    peer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    # Scripts that were complete long ago: both sides know the same characters of them.
    for code in (
        *range(0x20, 0x370),
        *range(0x390, 0x52F),
        *range(0x2010, 0x2050),
        *range(0x3041, 0x9FA5, 97),
    ):
        text = f"A{chr(code)}dog, Café $5{chr(code)}"
        assert PIECES.pieces(text) == peer.encode(text, add_special_tokens=False).ids, hex(code)


@pytest.mark.parametrize(
    ("text", "pair", "length", "expected"),
    [
        ("dog", None, 5, "[CLS] dog [SEP] [PAD] [PAD]"),
        ("a a a a", None, 4, "[CLS] a a [SEP]"),
        ("", None, 3, "[CLS] [SEP] [PAD]"),
        ("dog", "a", 6, "[CLS] dog [SEP] a [SEP] [PAD]"),
        ("a a a a dog", "s", 6, "[CLS] a a [SEP] s [SEP]"),  # the longer part is cut
        ("a", "s s s s dog", 6, "[CLS] a [SEP] s s [SEP]"),
        ("a a a", "s s s", 8, "[CLS] a a a [SEP] s s [SEP]"),  # of two equals the second
        ("a a a", "s s s", 7, "[CLS] a a [SEP] s s [SEP]"),
    ],
)
def test_encode_cuts_and_pads(text: str, pair: str | None, length: int, expected: str) -> None:
    row = PIECES.encode(text, pair, length=length)
    assert [PIECES.vocabulary[index] for index in row] == expected.split()


def write(path: Path, entries: tuple[str, ...], end: str = "\n") -> Path:
    path.write_bytes("".join(entry + end for entry in entries).encode())
    return path


def test_a_vocabulary_file_is_read_in_order(tmp_path: Path) -> None:
    filler = tuple(f"word{n}" for n in range(WORDS - 5))
    entries = (*SPECIAL, *filler, "\u2028")  # a line separator inside an entry is no line end
    read = WordPiece.read(write(tmp_path / "vocab.txt", entries))
    assert read.vocabulary == entries
    assert WordPiece.read(write(tmp_path / "dos.txt", entries, "\r\n")).vocabulary == entries


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (SPECIAL, "expected 30522 entries in the vocabulary .*, got 4"),
        (tuple(map(str, range(WORDS))), "expected \\[PAD\\], \\[UNK\\], \\[CLS\\], \\[SEP\\] in"),
        ((*SPECIAL, *["same"] * (WORDS - 4)), "expected different entries .* 30517 occur twice"),
    ],
)
def test_a_wrong_vocabulary_is_refused(
    tmp_path: Path, entries: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        WordPiece.read(write(tmp_path / "vocab.txt", entries))


def test_a_missing_vocabulary_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the vocabulary of bert-base-uncased in .*vocab"):
        WordPiece.read(tmp_path / "vocab.txt")
