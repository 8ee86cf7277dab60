"""Second views of an example, which a contrast aligns with the first, by name; a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from metamae.config.sections import ContrastConfig
from metamae.inputs import Inputs
from metamae.model.views.quantization import RandomQuantization
from metamae.model.views.viewed import ViewedSplit


def own_view(config: ContrastConfig, inputs: Inputs) -> None:
    """The method's own: a second mask of mae_contrast, the refined latent of metamae."""


def quantized_view(config: ContrastConfig, inputs: Inputs) -> RandomQuantization:
    """Numbers of a channel become those of a few random bins (Wu et al. 2023), under one mask."""
    return RandomQuantization(inputs, config.bins)


VIEWS: Mapping[str, Callable[[ContrastConfig, Inputs], RandomQuantization | None]] = (
    MappingProxyType({"own": own_view, "quantization": quantized_view})
)
"""What makes each, by the name that ``contrast.view`` uses."""

__all__ = ["VIEWS", "RandomQuantization", "ViewedSplit", "own_view", "quantized_view"]
