"""Configuration: what determines a run, from YAML presets and ``key=value`` overrides.

:mod:`~metamae.config.schema` holds :class:`Config`, :mod:`~metamae.config.sections` its parts,
:mod:`~metamae.config.presets` the ways to one, :mod:`~metamae.config.reading` the checks.
"""

from metamae.config.baselines import BaselineConfig, CapriConfig, EMixConfig
from metamae.config.names import METHODS, known_methods
from metamae.config.presets import list_presets, load_preset, make_config, override
from metamae.config.schema import COMPARED, PRESETS, Config
from metamae.config.sections import (
    LEARNABLE,
    AdaptationConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    LearnConfig,
    MaskingConfig,
    ProbeConfig,
    TrainingConfig,
)

__all__ = [
    "COMPARED",
    "LEARNABLE",
    "METHODS",
    "PRESETS",
    "AdaptationConfig",
    "BaselineConfig",
    "CapriConfig",
    "Config",
    "ContrastConfig",
    "DecoderConfig",
    "EMixConfig",
    "EncoderConfig",
    "LearnConfig",
    "MaskingConfig",
    "ProbeConfig",
    "TrainingConfig",
    "known_methods",
    "list_presets",
    "load_preset",
    "make_config",
    "override",
]
