"""The tokenizer: fixed positions, embeddings, type vectors, and the order of joined inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamae.config.schema import Config
from metamae.config.sections import DecoderConfig, EncoderConfig
from metamae.errors import InputError
from metamae.inputs import Image, Inputs, Signal, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.model.tokenizer import Tokenizer, sincos_positions

SIGNAL = Signal(name="watch", channels=2, length=12, token_length=2)
IMAGE = Image(name="photo", channels=1, height=4, width=6, patch=(2, 2))
ROW = Tabular(name="row", columns=5)
WORDS = Tokens(name="words", length=7, vocabulary=11)


def reference_1d(position: int, width: int) -> list[float]:
    """All sines, then all cosines, of the position times 10000 ** (-2 i / width)."""
    angles = [position / 10000 ** (2 * i / width) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def reference(grid: tuple[int, ...], width: int) -> Tensor:
    """Positions one token at a time: images give the column the first half of the channels."""
    if len(grid) == 1:
        rows = [reference_1d(t, width) for t in range(grid[0])]
    else:
        rows = [
            reference_1d(column, width // 2) + reference_1d(row, width // 2)
            for row in range(grid[0])
            for column in range(grid[1])
        ]
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    grid=st.one_of(
        st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 15), st.integers(1, 15))
    ),
    width=st.sampled_from([4, 8, 128, 256]),
)
def test_positions_follow_the_published_rule(grid: tuple[int, ...], width: int) -> None:
    """To float32's last place, also at position 300, where a float32 angle would be off by 1e-5."""
    positions = sincos_positions(grid, width)
    assert positions.dtype == torch.float32
    torch.testing.assert_close(positions.double(), reference(grid, width), atol=1e-7, rtol=0)


def test_the_first_half_of_the_channels_is_the_column() -> None:
    """A 2 x 3 grid by hand: tokens 0 and 3 share the column, tokens 3 and 4 share the row."""
    positions = sincos_positions((2, 3), 8)
    assert torch.equal(positions[0, :4], positions[3, :4])
    assert not torch.equal(positions[0, 4:], positions[3, 4:])
    assert torch.equal(positions[3, 4:], positions[4, 4:])
    assert positions[1, 0].item() == pytest.approx(math.sin(1), abs=1e-6)


@pytest.mark.parametrize(("grid", "width", "divisor"), [((3,), 5, 2), ((3, 2), 6, 4)])
def test_an_indivisible_width_is_refused(grid: tuple[int, ...], width: int, divisor: int) -> None:
    """Sines and cosines of every axis need equal shares."""
    with pytest.raises(ValueError, match=f"divisible by {divisor} .*, got {width}"):
        sincos_positions(grid, width)


def test_callers_cannot_spoil_the_cached_table() -> None:
    """Tables are computed once per grid, so everyone gets a copy."""
    before = sincos_positions((4,), 8)
    sincos_positions((4,), 8).zero_()
    assert torch.equal(sincos_positions((4,), 8), before)
    assert before.any()


def batch_of(inputs: Inputs, batch_size: int = 2) -> dict[str, Tensor]:
    """Random values of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    whole = {
        "watch": torch.randn(batch_size, 2, 12, generator=generator),
        "photo": torch.randn(batch_size, 1, 4, 6, generator=generator),
        "row": torch.randn(batch_size, 5, generator=generator),
        "words": torch.randint(11, (batch_size, 7), generator=generator),
    }
    return {spec.name: whole[spec.name] for spec in inputs}


@pytest.mark.parametrize("spec", [SIGNAL, IMAGE, ROW, WORDS], ids=lambda spec: spec.name)
def test_a_token_is_its_embedding_plus_its_position(
    spec: Signal | Image | Tabular | Tokens,
) -> None:
    """Positions count data tokens from 0: there is no class token yet, so none is shifted."""
    tokenizer, batch = Tokenizer((spec,), width=8), batch_of((spec,))
    [(_, weight), *bias] = list(tokenizer.embed.named_parameters())
    target = tokenizer.targets(batch)[spec.name]
    embedded = weight[target] if isinstance(spec, Tokens) else target @ weight.T + bias[0][1]
    expected = embedded + reference(spec.grid, 8).float()
    torch.testing.assert_close(tokenizer(batch), expected)
    assert tokenizer.type_vectors is None


def test_symbols_start_xavier_uniform_and_reals_have_zero_bias() -> None:
    """The published initialisation: bound sqrt(6 / (in + out)), not the default of either layer."""
    table = Tokenizer((Tokens(name="w", length=2, vocabulary=300),), width=64).symbol_table(0)
    bound = math.sqrt(6 / (300 + 64))
    assert 0.99 * bound < table.abs().max().item() <= bound
    linear = Tokenizer((SIGNAL,), width=64).embed[0]
    assert linear.weight.abs().max().item() <= math.sqrt(6 / (4 + 64))
    assert not linear.bias.any()


@pytest.mark.parametrize("inputs", [(IMAGE, WORDS), (WORDS, IMAGE, ROW)])
def test_several_inputs_are_joined_in_order_with_type_vectors(inputs: Inputs) -> None:
    """Each input's slice is what it would be alone, plus that input's own type vector."""
    joint, batch, offset = Tokenizer(inputs, width=8), batch_of(inputs), 0
    assert joint.type_vectors is not None
    tokens = joint(batch)
    for number, spec in enumerate(inputs):
        alone = Tokenizer((spec,), width=8)
        alone.embed[0].load_state_dict(joint.embed[number].state_dict())
        expected = alone({spec.name: batch[spec.name]}) + joint.type_vectors[number]
        torch.testing.assert_close(tokens[:, offset : offset + spec.tokens], expected)
        offset += spec.tokens
    assert tokens.shape == (2, offset, 8)
    assert len({tuple(vector.tolist()) for vector in joint.type_vectors}) == len(inputs)


@pytest.mark.parametrize("symbol", [11, -1])
def test_a_symbol_outside_the_vocabulary_is_refused(symbol: int) -> None:
    """Neither wrapped round nor clamped."""
    batch = {"words": torch.full((1, 7), symbol)}
    with pytest.raises((InputError, IndexError)):
        Tokenizer((WORDS,), width=8)(batch)


def small_method(inputs: Inputs) -> MAE:
    """An untrained plain masked autoencoder."""
    config = Config(
        dataset="test",
        method="mae",
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        decoder=DecoderConfig(width=8, depth=1, heads=2),
    )
    return build_method(config, inputs)


def test_longer_signals_have_features_but_no_loss() -> None:
    """The encoder's positions extend; masks and decoder are made for pretraining's grid."""
    method, longer = small_method((SIGNAL,)), {"watch": torch.randn(2, 2, 20)}
    assert method.network.token_features(longer).shape == (2, 10, 16)
    assert method.features(longer).isfinite().all()
    split = method.draw(2, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"token grid \(6,\), got \(10,\)"):
        method(longer, split)
    assert method({"watch": longer["watch"][..., :12]}, split).loss.isfinite()


def test_a_longer_signal_keeps_the_positions_of_its_beginning() -> None:
    """Extended, not stretched: the first tokens of a longer signal are embedded as before."""
    tokenizer, longer = Tokenizer((SIGNAL,), width=8), torch.randn(2, 2, 20)
    beginning = tokenizer({"watch": longer[..., :12]})
    torch.testing.assert_close(tokenizer({"watch": longer})[:, :6], beginning)
