"""Randomised quantisation: a second view of numbers of any modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metamae.errors import ConfigError
from metamae.inputs import Batch, Image, Inputs, InputSpec, Signal, Tokens


@dataclass(frozen=True)
class RandomQuantization:
    r"""Numbers of a channel become those of a few bins (Wu et al. 2023).

    The range of a channel of an example is cut at ``bins - 1`` places drawn uniformly, and every
    number in a bin becomes one number drawn uniformly in that bin:

    .. math:: q(x) = v_k, \quad v_k \sim U(e_k, e_{k+1}), \quad e_k \le x < e_{k+1}

    Channels are those of a signal or an image; a row of a table, or an example of another kind of
    input, is one channel. Gaps of a table (NaN) stay gaps.

    Args:
        inputs: Specifications of the inputs.
        bins: Of every channel.

    Raises:
        ConfigError: an input of symbols, between which there is no range.

    Example:
        >>> import torch
        >>> from metamae.inputs import Signal
        >>> from metamae.model.views import RandomQuantization
        >>> view = RandomQuantization((Signal(name="x", channels=2, length=8, token_length=2),), 3)
        >>> noise = view.draw(1, torch.Generator().manual_seed(0))
        >>> quantised = view({"x": torch.randn(1, 2, 8)}, noise)["x"]
        >>> [len(channel.unique()) <= 3 for channel in quantised[0]]
        [True, True]
    """

    inputs: Inputs
    bins: int

    def __post_init__(self) -> None:
        """Refuse symbols."""
        for spec in self.inputs:
            if isinstance(spec, Tokens):
                raise ConfigError(
                    "expected inputs of numbers for contrast.view=quantization, got symbols "
                    f"({spec.name!r}); use contrast.view=own"
                )

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers ``(B, C, 2 bins - 1)``: where to cut, and which number of a bin."""
        channels = sum(_channels(spec) for spec in self.inputs)
        return torch.rand(batch_size, channels, 2 * self.bins - 1, generator=generator)

    def __call__(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """The batch, quantised; each example for itself."""
        parts = noise.split([_channels(spec) for spec in self.inputs], dim=1)
        return {
            spec.name: _quantise(batch[spec.name], part, self.bins)
            for spec, part in zip(self.inputs, parts, strict=True)
        }


def _channels(spec: InputSpec) -> int:
    return spec.channels if isinstance(spec, Signal | Image) else 1


def _quantise(x: Tensor, noise: Tensor, bins: int) -> Tensor:
    """Numbers ``(B, ...)`` by noise ``(B, C, 2 bins - 1)``; ``C`` channels come first.

    A gap of a table, NaN, has no part in the range and stays one.
    """
    whole = x.reshape(len(x), noise.shape[1], -1)  # (B, C, N)
    gaps = whole.isnan()
    low = whole.where(~gaps, torch.inf).amin(-1, keepdim=True)
    high = whole.where(~gaps, -torch.inf).amax(-1, keepdim=True)
    low, high = (end.where(~gaps.all(-1, keepdim=True), 0.0) for end in (low, high))
    flat = whole.where(~gaps, low)
    noise = noise.to(x.dtype)
    cuts = low + (high - low) * noise[..., : bins - 1].sort(dim=-1).values
    first, last = torch.cat([low, cuts], -1), torch.cat([cuts, high], -1)  # (B, C, bins)
    values = first + (last - first) * noise[..., bins - 1 :]
    number = torch.searchsorted(cuts.contiguous(), flat.contiguous(), right=True)  # (B, C, N)
    return values.gather(-1, number).where(~gaps, whole).view_as(x)
