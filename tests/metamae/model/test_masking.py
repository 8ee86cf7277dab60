"""Masking: exact counts, uniform draws, and the neighbours of every kind of input."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamae.errors import ConfigError
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.model.masking import Masking, Split, neighbour_table, visible_count


def row(tokens: int, name: str = "row") -> Tabular:
    """A 1-D input."""
    return Tabular(name=name, columns=tokens)


def grid(rows: int, columns: int, name: str = "image") -> Image:
    """A 2-D input."""
    return Image(name=name, channels=1, height=rows, width=columns, patch=(1, 1))


def draw(masking: Masking, batch_size: int, seed: int = 0) -> Split:
    """A seeded draw."""
    return masking.draw(batch_size, torch.Generator().manual_seed(seed))


# Published counts: tokens, mask ratio, visible, masked.
PUBLISHED = {
    "pamap2": (64, 0.85, 9, 55),
    "higgs": (28, 0.50, 14, 14),
    "eurosat": (64, 0.85, 9, 55),
    "genomics": (250, 0.50, 125, 125),
    "pfam": (128, 0.15, 108, 20),
    "librispeech": (196, 0.85, 29, 167),
    "wafermap": (64, 0.15, 54, 10),
    "imagenet32": (64, 0.85, 9, 55),
    "mscoco": (228, 0.50, 114, 114),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    """`int(L (1 - ratio))` visible; the baselines' `ceil(L ratio)` masked gives the same."""
    tokens, ratio, visible, masked = PUBLISHED[name]
    assert visible_count(tokens, ratio) == visible
    assert visible_count(tokens, 1 - (1 - ratio)) == visible  # 1 - 0.15 is not 0.85 in floats
    assert tokens - visible == masked == math.ceil(tokens * ratio)
    split = draw(Masking((row(tokens),), ratio), 2)
    assert split.support_idx.shape == (2, visible)
    assert split.query_idx.shape == split.nearby.shape == (2, masked)


@settings(max_examples=200, deadline=None)
@given(tokens=st.integers(2, 400), percent=st.integers(1, 99))
def test_the_masked_count_is_the_ceiling_of_exact_arithmetic(tokens: int, percent: int) -> None:
    """Rounding errors of the product never cost a token (10 tokens at 0.9 keep one)."""
    masked = math.ceil(Fraction(percent, 100) * tokens)
    if masked == tokens:
        with pytest.raises(ConfigError, match=f"keeps 0 of {tokens} tokens"):
            visible_count(tokens, percent / 100)
    else:
        assert visible_count(tokens, percent / 100) == tokens - masked


inputs_strategy = st.lists(
    st.one_of(
        st.integers(4, 12).map(row),
        st.tuples(st.integers(2, 4), st.integers(2, 4)).map(lambda sides: grid(*sides)),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    inputs=inputs_strategy,
    mask_ratio=st.floats(0.3, 0.7),
    nearby_ratio=st.floats(0, 1),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_a_partition_with_exact_counts(
    inputs: Inputs, mask_ratio: float, nearby_ratio: float, batch_size: int, seed: int
) -> None:
    """Of every example, input by input, ascending, and the same for the same generator."""
    masking = Masking(inputs, mask_ratio, nearby_ratio)
    split = draw(masking, batch_size, seed)
    total = sum(spec.tokens for spec in inputs)
    for support, query in zip(split.support_idx.tolist(), split.query_idx.tolist(), strict=True):
        assert sorted(support + query) == list(range(total))
        assert support == sorted(support)
        assert query == sorted(query)
        start = 0
        for spec, visible in zip(inputs, masking.support_counts, strict=True):
            own = range(start, start + spec.tokens)
            assert sum(token in own for token in support) == visible
            start += spec.tokens
    again = draw(masking, batch_size, seed)
    assert torch.equal(split.support_idx, again.support_idx)
    assert torch.equal(split.query_idx, again.query_idx)
    assert torch.equal(split.nearby, again.nearby)


def test_another_seed_another_example_another_split() -> None:
    """Examples are masked independently, and nothing is cached between draws."""
    masking = Masking((row(64),), 0.5)
    first = draw(masking, 2)
    assert not torch.equal(first.support_idx[0], first.support_idx[1])
    assert not torch.equal(first.support_idx, draw(masking, 2, seed=1).support_idx)


def test_support_sets_are_uniform() -> None:
    """All 10 pairs of 5 tokens equally often (chi-square, 9 degrees of freedom, seed fixed)."""
    split = draw(Masking((row(5),), 0.6), 5000)
    pairs = [tuple(pair) for pair in split.support_idx.tolist()]
    counts = [pairs.count(pair) for pair in combinations(range(5), 2)]
    assert sum((count - 500) ** 2 / 500 for count in counts) < 27.9  # p = 0.001


def brute_force(inputs: Inputs) -> list[set[int]]:
    """Neighbours by definition: grid places of one input whose coordinates differ by one step."""
    places = [
        (number, *divmod(token, spec.grid[1] if len(spec.grid) == 2 else spec.tokens))
        for number, spec in enumerate(inputs)
        for token in range(spec.tokens)
    ]
    return [
        {
            other
            for other, (n, i, j) in enumerate(places)
            if n == number and abs(i - row_) + abs(j - column) == 1
        }
        for number, row_, column in places
    ]


LAYOUTS: dict[str, Inputs] = {
    "row": (row(7),),
    "one token": (row(1),),
    "signal": (Signal(name="s", channels=2, length=12, token_length=3),),
    "words": (Tokens(name="w", length=5, vocabulary=3),),
    "wide image": (grid(2, 5),),
    "tall image": (grid(5, 2),),
    "one line": (grid(1, 4),),
    "patches": (Image(name="i", channels=2, height=6, width=8, patch=(2, 4)),),
    "image and words": (grid(3, 4), Tokens(name="w", length=5, vocabulary=3)),
    "three inputs": (row(4, "a"), grid(2, 3), row(5, "b")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_neighbours_follow_the_definition(name: str) -> None:
    """Left and right, or the four edges; never diagonal, round a border, or across inputs."""
    inputs = LAYOUTS[name]
    total = sum(spec.tokens for spec in inputs)
    table = neighbour_table(inputs)
    assert table.shape == (total, 4)
    assert [set(line) - {total} for line in table.tolist()] == brute_force(inputs)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one token"])
@pytest.mark.parametrize("mask_ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("nearby_ratio", [0.0, 0.4, 1.0])
def test_nearby_tokens_are_masked_and_touch_a_visible_one(
    name: str, mask_ratio: float, nearby_ratio: float
) -> None:
    """Ratio 0 draws none, ratio 1 all of them, and no ratio ever draws a far token."""
    inputs = LAYOUTS[name]
    split, touching = draw(Masking(inputs, mask_ratio, nearby_ratio), 20), brute_force(inputs)
    drawn = possible = 0
    for support, query, nearby in zip(
        split.support_idx.tolist(), split.query_idx.tolist(), split.nearby.tolist(), strict=True
    ):
        for token, is_nearby in zip(query, nearby, strict=True):
            touches = bool(touching[token] & set(support))
            assert touches or not is_nearby
            drawn, possible = drawn + is_nearby, possible + touches
    assert possible > 0
    if nearby_ratio in (0.0, 1.0):
        assert drawn == nearby_ratio * possible
    else:
        assert 0 < drawn < possible


def test_nearby_tokens_are_drawn_at_their_ratio() -> None:
    """A Bernoulli draw for every touching token, at four standard deviations."""
    masking = Masking((row(64),), 0.5, 0.1)
    split = draw(masking, 500)
    touching = masking.touches_support(split.support_idx, split.query_idx)
    count = touching.sum().item()
    assert split.nearby.sum().item() == pytest.approx(0.1 * count, abs=4 * (0.09 * count) ** 0.5)
    assert not (split.nearby & ~touching).any()


TOUCHING = {
    "pamap2": (row(64), 0.85, 14.5),
    "higgs": (row(28), 0.50, 10.6),
    "eurosat": (grid(8, 8), 0.85, 23.2),
    "genomics": (row(250), 0.50, 93.8),
    "pfam": (row(128), 0.15, 19.5),
    "librispeech": (grid(14, 14), 0.85, 75.3),
    "wafermap": (grid(8, 8), 0.15, 10.0),
}


@pytest.mark.parametrize("name", TOUCHING)
def test_the_mean_number_of_touching_tokens(name: str) -> None:
    """Against the measured table, and the exact mean: 1 - P(no neighbour visible), summed."""
    spec, ratio, measured = TOUCHING[name]
    tokens, visible = spec.tokens, visible_count(spec.tokens, ratio)
    masked_and_alone = [
        math.comb(tokens - 1 - len(neighbours), visible) for neighbours in brute_force((spec,))
    ]
    masked = tokens * math.comb(tokens - 1, visible)
    exact = float(Fraction(masked - sum(masked_and_alone), math.comb(tokens, visible)))
    assert exact == pytest.approx(measured, abs=0.15)
    counts = draw(Masking((spec,), ratio, 1.0), 1000).nearby.sum(1).double()
    spread = counts.std().item() / len(counts) ** 0.5
    assert counts.mean().item() == pytest.approx(exact, abs=4 * spread)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_impossible_mask_ratios_are_refused(ratio: float) -> None:
    """Nothing visible or nothing masked is no task."""
    with pytest.raises(ConfigError, match="mask ratio between 0 and 1"):
        Masking((row(8),), ratio)


@pytest.mark.parametrize(("ratio", "kept"), [(0.95, 0), (1e-12, 8)])
def test_a_ratio_that_leaves_one_side_empty_is_refused(ratio: float, kept: int) -> None:
    """Every input is checked, the second too."""
    with pytest.raises(ConfigError, match=f"keeps {kept} of 8 tokens"):
        Masking((row(100, "wide"), row(8)) if kept == 0 else (row(8),), ratio)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_impossible_nearby_ratios_are_refused(ratio: float) -> None:
    """A probability."""
    with pytest.raises(ConfigError, match=r"nearby ratio in \[0, 1\]"):
        Masking((row(8),), 0.5, ratio)


@pytest.mark.parametrize(("fraction", "counts"), [(0.25, (2, 1)), (0.5, (4, 2)), (1e-6, (1, 1))])
def test_a_share_of_the_masked_tokens_is_scored(fraction: float, counts: tuple[int, ...]) -> None:
    """Of every input its own share, without repetition, each token equally often."""
    inputs = (Tabular(name="a", columns=12), Tabular(name="b", columns=6))
    whole, part = Masking(inputs, 0.7, 0.3), Masking(inputs, 0.7, 0.3, fraction)
    split = part.draw(4000, torch.Generator().manual_seed(0))
    assert part.counts_of(split) == ((3, 1), (9, 5), counts)
    scored = split.scored
    assert scored is not None
    assert scored.shape == (4000, sum(counts))
    assert (scored[:, 1:] > scored[:, :-1]).all()
    assert (scored[:, : counts[0]] < 9).all()
    assert (scored[:, counts[0] :] >= 9).all()
    often = scored.flatten().bincount(minlength=14) / 4000
    torch.testing.assert_close(often[:9], torch.full((9,), counts[0] / 9), atol=0.03, rtol=0)
    torch.testing.assert_close(often[9:], torch.full((5,), counts[1] / 5), atol=0.03, rtol=0)
    # All else is drawn as ever.
    other = whole.draw(4000, torch.Generator().manual_seed(0))
    assert other.scored is None
    for name in ("support_idx", "query_idx", "nearby"):
        assert torch.equal(getattr(split, name), getattr(other, name))
    assert split[2:4].scored is not None
    assert torch.equal(split[2:4].scored, scored[2:4])
    assert split.in_slots((20, 20)).scored is scored  # type: ignore[union-attr]


def test_neighbours_on_a_grid_of_three_axes() -> None:
    """Every token of a 2 x 2 x 3 block touches those one step away on one axis."""

    class Block:
        name, grid, tokens = "block", (2, 2, 3), 12

    table = neighbour_table((Block(),))  # type: ignore[arg-type]
    places = [np.array(np.unravel_index(n, Block.grid)) for n in range(12)]
    for token, place in enumerate(places):
        expected = {n for n in range(12) if abs(places[n] - place).sum() == 1}
        assert set(table[token].tolist()) - {12} == expected
    assert table.shape == (12, 6)
