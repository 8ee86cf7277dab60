"""Configuration: frozen dataclasses, filled from YAML presets and ``key=value`` overrides.

Unknown keys and wrong types are errors that name the nearest key. The resolved configuration is
written into every run folder and checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from metamae.config.baselines import BaselineConfig
from metamae.config.checks import check_fields, require
from metamae.config.names import check_method
from metamae.config.reading import build, plain
from metamae.config.sections import (
    AdaptationConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    LearnConfig,
    MaskingConfig,
    ProbeConfig,
    TargetConfig,
    TrainingConfig,
)
from metamae.config.together import TRACED, check_together

PRESETS = ("pocket", "paper", "shared")
"""Kinds of presets: small; Table 8 of the paper; Table 9, three settings shared."""

COMPARED = ("random", "mae", "metamae")
"""The methods that are compared when none are named."""

LARGEST_SEED = 2**64 - 1
"""The largest that torch's generators take."""

COMPILE_FROM = 10_000
"""Steps from which compiling pays: minutes against a tenth of every step, on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run, apart from the data themselves.

    Attributes:
        dataset: Name of the data set, or the path it was opened from.
        method: One of :data:`METHODS`, or of those that others registered.
        preset: Where the values came from that were not set by hand.
        seed: Seed of weights, order, masks and dropout.
        token_size: Overrides the data set's own: steps per token, or patch height and width.
        encoder: The encoder.
        decoder: The decoder.
        masking: What is masked.
        adaptation: The inner step.
        contrast: The task-contrastive loss.
        baseline: Settings of the baselines.
        learn: Settings that are learned.
        training: Pretraining.
        probe: The linear probe.
        target: What is predicted.
    """

    dataset: str
    method: str = "metamae"
    preset: Literal["pocket", "paper", "shared", "auto"] = "pocket"
    seed: int = 0
    token_size: tuple[int, ...] = ()
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    target: TargetConfig = field(default_factory=TargetConfig)

    def __post_init__(self) -> None:
        """Check the method's name, the seed, and what does not go together."""
        check_fields(self, "")
        check_method(self.method)
        require(0 <= self.seed <= LARGEST_SEED, "seed >= 0 and < 2**64", self.seed)
        check_together(self)

    @property
    def compiles(self) -> bool:
        """Whether pretraining is to be compiled.

        ``training.compile=auto`` decides by the configuration alone, so that a resumed run does as
        the first one did: MAE and MetaMAE from :data:`COMPILE_FROM` steps on, where the gradient
        policy can be traced and no settings are learned; and whatever asks for CUDA graphs, which
        record what was compiled.

        Example:
            >>> from metamae import make_config
            >>> make_config("pamap2", preset="paper").compiles, make_config("sensors").compiles
            (True, False)
        """
        if "on" in (self.training.compile, self.training.cuda_graphs):
            return True
        if self.training.compile == "off":
            return False
        can = self.adaptation.differentiation in TRACED and not self.learn.settings
        can = can and not self.masking.ratio_range
        return can and self.method in ("mae", "metamae") and self.training.steps >= COMPILE_FROM

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, fit for YAML, JSON and checkpoints."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values

    def to_yaml(self) -> str:
        """The resolved configuration as YAML text."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False)
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build and check a configuration.

        Raises:
            ConfigError: on unknown keys, wrong types or impossible values.
        """
        config: Config = build(cls, values, "")
        return config
