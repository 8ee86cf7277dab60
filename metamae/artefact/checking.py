"""Checks of exported programs against the encoder in eager mode."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamae.artefact.reading import example_sizes
from metamae.data.description import Description
from metamae.errors import ExportError, MetamaeError, reason_of
from metamae.inputs import InputSpec, Tokens
from metamae.randomness import generator

SIZES = (1, 2, 7)
"""Batch sizes that an exported program is checked with."""
TOLERANCE = 1e-5

Run = Callable[..., Any]
"""Runs an exported program on one tensor for each input."""


def check_program(run: Run, module: nn.Module, description: Description) -> float:
    """Largest difference between a program and a module, for some batch sizes.

    Raises:
        ExportError: it fails, or gives other numbers.
    """
    largest = 0.0
    for size in SIZES:
        inputs = examples(description, size)
        with torch.no_grad():
            expected = module(*inputs)
        with blamed("program"), quiet():
            found = torch.as_tensor(np.asarray(run(*inputs)))
        difference = (
            float((found - expected).abs().max()) if found.shape == expected.shape else np.inf
        )
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise ExportError(
                f"expected what the encoder gives to {TOLERANCE:g} from the exported program, got "
                f"a difference of {difference:.3g} for a batch of {size}; nothing was written"
            )
        largest = max(largest, difference)
    return largest


def examples(description: Description, size: int) -> list[Tensor]:
    """Drawn raw examples, one tensor for each input, always the same."""
    draw = generator(size, "export")
    return [_example(spec, description, size, draw) for spec in description.inputs]


def _example(spec: InputSpec, description: Description, size: int, draw: torch.Generator) -> Tensor:
    sizes = example_sizes(spec)
    if not sizes:
        raise ExportError(
            f"expected inputs of the package's own kinds, got {type(spec).__name__}: call "
            "torch.export.export on the encoder's module yourself"
        )
    if isinstance(spec, Tokens):
        return torch.randint(spec.vocabulary, (size, *sizes), generator=draw)
    x = torch.randn(size, *sizes, generator=draw)
    if getattr(spec, "gaps", False):
        x[torch.rand(x.shape, generator=draw) < 0.2] = torch.nan
    scaling = description.scaling.get(spec.name)
    if scaling is None:
        return x
    scale, mean = (
        torch.from_numpy(np.asarray(v, np.float32)) for v in (scaling.scale, scaling.mean)
    )
    return x * scale + mean


def inputs_in_words(description: Description) -> tuple[str, ...]:
    """Name, type and shape of what an exported program takes.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.artefact.checking import inputs_in_words
        >>> from metamae.data.description import Description
        >>> inputs_in_words(Description.of(load_dataset("sensors")))
        ('signal float32 (batch, 6, 128)',)
    """
    words = []
    for spec, x in zip(description.inputs, examples(description, 1), strict=True):
        sizes = ", ".join(["batch", *map(str, x.shape[1:])])
        words.append(f"{spec.name} {str(x.dtype).removeprefix('torch.')} ({sizes})")
    return tuple(words)


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """An error of somebody else's exporter or runtime, in one line."""
    try:
        yield
    except (MetamaeError, OSError):
        raise
    except Exception as fault:  # they raise whatever they like
        raise ExportError(
            f"expected an encoder that can be exported ({what}), got {type(fault).__name__}: "
            f"{reason_of(fault)}; nothing was written"
        ) from fault


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say of their own insides: deprecations, optional libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
