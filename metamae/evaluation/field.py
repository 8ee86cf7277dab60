"""The plain feature of a field: what people compute by hand for signals, sequences and images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from metamae.data.dataset import Array, Dataset, Partition
from metamae.errors import DataError
from metamae.evaluation.features import Features
from metamae.evaluation.gradients import gradient_histograms
from metamae.evaluation.kmers import choose_word_length, count_words
from metamae.evaluation.windows import window_statistics
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tokens

ROWS_AT_ONCE = 512


def describe_field(inputs: Inputs) -> str:
    """What the plain features of some inputs are, in words; empty where they have none.

    Rows of a table have none: their columns are such features already.

    Example:
        >>> from metamae.evaluation.field import describe_field
        >>> from metamae.inputs import Signal, Tokens
        >>> describe_field((Tokens(name="dna", length=64, vocabulary=4),))
        '5-mers'
        >>> describe_field((Signal(name="watch", channels=6, length=128, token_length=4),))
        'window statistics'
    """
    words = [words for spec in inputs if (words := _describe(spec))]
    return " and ".join(dict.fromkeys(words))


def field_features(dataset: Dataset) -> Features:
    """Plain features of the labelled rows, in the place of an encoder's.

    Raises:
        DataError: inputs without such features.
    """
    if not describe_field(dataset.inputs):
        raise DataError(
            f"expected signals, sequences or images for features made by hand, {dataset.name!r} "
            "has none; raw inputs are such features already"
        )
    train, test = (torch.from_numpy(_compute(dataset.need(part))) for part in ("train", "test"))
    return Features.of(dataset, train, test)


def _compute(data: Partition) -> Array:
    makers = {spec.name: maker for spec in data.inputs if (maker := _maker(spec)) is not None}
    parts = []
    for start in range(0, len(data), ROWS_AT_ONCE):
        batch = data.batch(slice(start, start + ROWS_AT_ONCE))
        parts.append(
            np.concatenate([make(batch[name].numpy()) for name, make in makers.items()], 1)
        )
    features: Array = np.concatenate(parts).astype(np.float32)
    return features


def _describe(spec: InputSpec) -> str:
    if isinstance(spec, Signal):
        return "window statistics"
    if isinstance(spec, Image):
        return "gradient histograms"
    if isinstance(spec, Tokens) and not _is_columns(spec):
        return f"{choose_word_length(len(_symbols(spec)), spec.length)}-mers"
    return ""


def _maker(spec: InputSpec) -> Callable[[Array], Array] | None:
    if isinstance(spec, Signal):
        return window_statistics
    if isinstance(spec, Image):
        return gradient_histograms
    if isinstance(spec, Tokens) and not _is_columns(spec):
        symbols = _symbols(spec)
        length = choose_word_length(len(symbols), spec.length)
        return lambda sequences: count_words(sequences, symbols, length)
    return None


def _is_columns(spec: Tokens) -> bool:
    """Whether symbols are levels of a table's columns ("colour=red"), whose order means nothing."""
    return bool(spec.alphabet) and all("=" in name for name in spec.alphabet)


def _symbols(spec: Tokens) -> Array:
    """Symbols that carry meaning: padding and the like have names such as ``<pad>``."""
    names = spec.alphabet or ("",) * spec.vocabulary
    symbols: Array = np.array([n for n, name in enumerate(names) if not name.startswith("<")])
    return symbols if len(symbols) else np.arange(spec.vocabulary)
