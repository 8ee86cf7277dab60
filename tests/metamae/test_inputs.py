"""Input specifications: tokens are cut where they should be, and bad data are named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamae.errors import InputError
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tabular, Tokens, check_batch

SIGNAL = Signal(name="watch", channels=2, length=12, token_length=3)
IMAGE = Image(name="photo", channels=3, height=4, width=6, patch=(2, 3))
ROW = Tabular(name="row", columns=5)
WORDS = Tokens(name="words", length=7, vocabulary=11)

size = st.integers(1, 4)
signals = st.builds(
    lambda channels, step, tokens: Signal(
        name="s", channels=channels, length=step * tokens, token_length=step
    ),
    size,
    size,
    size,
)
images = st.builds(
    lambda channels, ph, pw, rows, columns: Image(
        name="i", channels=channels, height=ph * rows, width=pw * columns, patch=(ph, pw)
    ),
    size,
    size,
    size,
    size,
    size,
)


def shape(spec: InputSpec) -> tuple[int, ...]:
    """Shape of one example."""
    match spec:
        case Signal():
            return (spec.channels, spec.length)
        case Image():
            return (spec.channels, spec.height, spec.width)
        case Tabular():
            return (spec.columns,)
        case Tokens():
            return (spec.length,)


def counting(spec: InputSpec, batch_size: int) -> Tensor:
    """A batch whose values are all different, so that any misplaced value shows."""
    sizes = (batch_size, *shape(spec))
    return torch.arange(torch.Size(sizes).numel(), dtype=torch.float64).reshape(sizes)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.one_of(signals, images, st.builds(Tabular, name=st.just("t"), columns=size)),
    batch_size=size,
)
def test_tokens_hold_every_value_once_and_go_back(
    spec: Signal | Image | Tabular, batch_size: int
) -> None:
    """Rectangular images too: a swapped height and width would lose the round trip."""
    x = counting(spec, batch_size)
    tokens = spec.patchify(x)
    assert tokens.shape == (batch_size, spec.tokens, spec.values)
    assert torch.equal(spec.unpatchify(tokens), x)
    assert spec.grid_of(x) == spec.grid
    assert torch.Size(spec.grid).numel() == spec.tokens


@settings(max_examples=30, deadline=None)
@given(spec=signals, batch_size=size)
def test_a_signal_token_is_consecutive_steps_time_major(spec: Signal, batch_size: int) -> None:
    """Value (channel c, time t) sits in token t // size at place (t % size) * C + c."""
    x = counting(spec, batch_size)
    tokens = spec.patchify(x)
    for c in range(spec.channels):
        for t in range(spec.length):
            token, step = divmod(t, spec.token_length)
            assert torch.equal(tokens[:, token, step * spec.channels + c], x[:, c, t])


@settings(max_examples=30, deadline=None)
@given(spec=images)
def test_an_image_token_is_one_patch_and_patches_run_along_rows(spec: Image) -> None:
    """Pixel (i, j) sits in patch (i // ph, j // pw), numbered row by row."""
    x = counting(spec, 1)
    tokens = spec.patchify(x)
    (ph, pw), columns = spec.patch, spec.width // spec.patch[1]
    for c in range(spec.channels):
        for i in range(spec.height):
            for j in range(spec.width):
                place = ((i % ph) * pw + j % pw) * spec.channels + c
                assert tokens[0, (i // ph) * columns + j // pw, place] == x[0, c, i, j]


def test_one_pixel_by_hand() -> None:
    """Channel 1, row 3, column 4 of a 4 x 6 image with 2 x 3 patches: token 3, value 13."""
    x = torch.zeros(1, 3, 4, 6)
    x[0, 1, 3, 4] = 1
    assert IMAGE.patchify(x).nonzero().tolist() == [[0, 3, (1 * 3 + 1) * 3 + 1]]


def test_a_column_is_a_token() -> None:
    """Tabular tokens keep the order of the columns."""
    assert ROW.patchify(torch.arange(5.0)[None]).tolist() == [[[0.0], [1.0], [2.0], [3.0], [4.0]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_symbols_become_int64_unchanged(dtype: torch.dtype) -> None:
    """Embedding tables and gather want int64, data files hold bytes."""
    x = torch.tensor([[0, 10, 3]], dtype=dtype)
    assert WORDS.patchify(x).dtype == torch.int64
    assert WORDS.patchify(x).tolist() == [[0, 10, 3]]


def test_longer_batches_have_their_own_grid() -> None:
    """Features of longer series are allowed, so the grid follows the batch."""
    assert SIGNAL.grid_of(torch.zeros(1, 2, 24)) == (8,)
    assert SIGNAL.patchify(torch.zeros(1, 2, 24)).shape == (1, 8, 6)
    assert IMAGE.grid_of(torch.zeros(1, 3, 8, 3)) == (4, 1)


BAD_BATCHES = {
    "signal rank": (SIGNAL, torch.zeros(2, 12), "'watch' of shape (B, 2, any), got (2, 12)"),
    "signal channels": (SIGNAL, torch.zeros(2, 3, 12), "(B, 2, any), got (2, 3, 12)"),
    "signal dtype": (SIGNAL, torch.zeros(2, 2, 12).long(), "floating point, got torch.int64"),
    "signal length": (SIGNAL, torch.zeros(2, 2, 13), "multiple of the token size, got 13 and 3"),
    "empty signal": (SIGNAL, torch.zeros(2, 2, 0), "got 0 and 3"),
    "image rank": (IMAGE, torch.zeros(3, 4, 6), "'photo' of shape (B, 3, any, any), got (3, 4, 6)"),
    "image channels": (IMAGE, torch.zeros(2, 1, 4, 6), "got (2, 1, 4, 6)"),
    "image dtype": (IMAGE, torch.zeros(2, 3, 4, 6).byte(), "got torch.uint8"),
    "image height": (IMAGE, torch.zeros(2, 3, 5, 6), "the height of image 'photo'"),
    "image width": (IMAGE, torch.zeros(2, 3, 4, 8), "the width of image 'photo'"),
    "row rank": (ROW, torch.zeros(2, 5, 1), "'row' of shape (B, 5), got (2, 5, 1)"),
    "row columns": (ROW, torch.zeros(2, 6), "(B, 5), got (2, 6)"),
    "row dtype": (ROW, torch.zeros(2, 5).bool(), "got torch.bool"),
    "words rank": (WORDS, torch.zeros(2, 7, 1).long(), "'words' of shape (B, L), got (2, 7, 1)"),
    "words real": (WORDS, torch.zeros(2, 7), "'words' to hold integers, got torch.float32"),
    "words bool": (WORDS, torch.zeros(2, 7).bool(), "integers, got torch.bool"),
    "words complex": (
        WORDS,
        torch.zeros(2, 7).to(torch.complex64),
        "integers, got torch.complex64",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_bad_batch_is_named(case: str) -> None:
    """The message says which input, what was expected and what came."""
    spec, x, message = BAD_BATCHES[case]
    with pytest.raises(InputError, match=re.escape(message)):
        spec.patchify(x)


BAD_SPECS: dict[str, Callable[[], InputSpec]] = {
    "length of signal 's'": lambda: Signal(name="s", channels=1, length=10, token_length=3),
    "got 10 and 0": lambda: Signal(name="s", channels=1, length=10, token_length=0),
    "height of image 'i'": lambda: Image(name="i", channels=1, height=5, width=4, patch=(2, 2)),
    "width of image 'i'": lambda: Image(name="i", channels=1, height=4, width=5, patch=(2, 2)),
    "expected 4 names in the alphabet of 'dna', got 3": lambda: Tokens(
        name="dna", length=4, vocabulary=4, alphabet=("A", "C", "G")
    ),
}


@pytest.mark.parametrize("message", BAD_SPECS)
def test_a_bad_specification_is_named(message: str) -> None:
    """Refused where it is written down, not at the first batch."""
    with pytest.raises(InputError, match=re.escape(message)):
        BAD_SPECS[message]()


BOTH: Inputs = (IMAGE, WORDS)


def pair(images: int = 2, words: int = 2, length: int = 7) -> dict[str, Tensor]:
    """A batch of both inputs."""
    return {"photo": torch.zeros(images, 3, 4, 6), "words": torch.zeros(words, length).long()}


def test_check_batch_returns_the_batch_size() -> None:
    """In whatever order the batch lists its inputs."""
    assert check_batch(BOTH, pair(), exact=True) == 2
    assert check_batch(BOTH, dict(reversed(pair(5, 5).items())), exact=True) == 5


def test_check_batch_allows_other_grids_unless_exact() -> None:
    """A longer sequence has features; a pretraining loss needs the grid of the masks."""
    assert check_batch(BOTH, pair(length=9)) == 2
    with pytest.raises(InputError, match=r"'words' with token grid \(7,\), got \(9,\) from .*2, 9"):
        check_batch(BOTH, pair(length=9), exact=True)


def test_check_batch_names_missing_and_unknown_inputs() -> None:
    """Both lists are in the message."""
    with pytest.raises(InputError, match=r"\['photo', 'words'\], got \['photo'\]"):
        check_batch(BOTH, {"photo": torch.zeros(2, 3, 4, 6)})
    with pytest.raises(InputError, match=r"got \['photo', 'words', 'sound'\]"):
        check_batch(BOTH, pair() | {"sound": torch.zeros(2, 1)})


def test_check_batch_refuses_differing_batch_sizes() -> None:
    """Rows of different inputs belong together."""
    with pytest.raises(InputError, match=r"one batch size .* \{'photo': 2, 'words': 3\}"):
        check_batch(BOTH, pair(2, 3))
