"""The components of MetaMAE, switched one by one: the rows of the paper's Table 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from metamae.config.schema import Config
from metamae.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Components:
    """Which components a row of Table 4 has."""

    deep_decoder: bool
    inner_step: bool
    contrast: bool


TABLE_4: Mapping[str, Components] = MappingProxyType(
    {
        "linear_decoder": Components(deep_decoder=False, inner_step=False, contrast=False),
        "deep_decoder": Components(deep_decoder=True, inner_step=False, contrast=False),
        "inner_step": Components(deep_decoder=True, inner_step=True, contrast=False),
        "full": Components(deep_decoder=True, inner_step=True, contrast=True),
    }
)
"""Rows by name, in the paper's order: each adds one component to the one before."""


def ablate(name: str, config: Config) -> tuple[str, tuple[str, ...]]:
    """Method and overrides that make a row of :data:`TABLE_4` out of a MetaMAE configuration.

    Whatever the row does not name stays: sizes, mask ratio, step size, steps, learning rate. The
    linear decoder masks as many tokens as the other rows do (its own default is another), and its
    encoder sees the masked tokens' places, as a decoder would. A decoder of depth 0 would not do:
    its predictions of masked tokens do not depend on the latent.

    Args:
        name: A name in :data:`TABLE_4`.
        config: MetaMAE on the data set in question.

    Raises:
        ConfigError: an unknown name, or a configuration whose own contrast, inner step or decoder
            is off, so that the row would not have what its name says.

    Example:
        >>> from metamae.experiments.ablation import ablate
        >>> from metamae.config.presets import make_config
        >>> ablate("linear_decoder", make_config("sensors"))
        ('mae_linear', ('baseline.corruption=0.85',))
        >>> ablate("inner_step", make_config("sensors"))
        ('metamae', ('contrast.weight=0.0',))
    """
    row = TABLE_4.get(name)
    if row is None:
        raise ConfigError(
            f"expected an ablation among {', '.join(TABLE_4)}, {suggest(name, TABLE_4)}"
        )
    _refuse_missing(name, row, config)
    if not row.deep_decoder:
        return "mae_linear", (f"baseline.corruption={config.masking.mask_ratio}",)
    if not row.inner_step:
        return "mae", ()
    return "metamae", () if row.contrast else ("contrast.weight=0.0",)


def _refuse_missing(name: str, row: Components, config: Config) -> None:
    for wanted, key, value in (
        (row.deep_decoder, "decoder.depth", config.decoder.depth),
        (row.inner_step, "adaptation.step_size", config.adaptation.step_size),
        (row.contrast, "contrast.weight", config.contrast.weight),
    ):
        if wanted and value == 0:
            raise ConfigError(f"expected {key} > 0 for the ablation {name!r}, got {value}")
