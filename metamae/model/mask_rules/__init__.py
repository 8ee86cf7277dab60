"""Rules by which tokens are masked, by name; a file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metamae.config.schema import Config
from metamae.inputs import Inputs
from metamae.model.mask_rules.adaptive import AdaptiveRule
from metamae.model.mask_rules.attention import AttentionRule
from metamae.model.mask_rules.hard import HardRule
from metamae.model.mask_rules.rule import MaskRule, OpenSplit
from metamae.model.masking import Masking

RULES: Mapping[str, type[MaskRule] | type[Masking]] = MappingProxyType(
    {"random": Masking, "attention": AttentionRule, "hard": HardRule, "adaptive": AdaptiveRule}
)
"""By the name that ``masking.rule`` uses."""


def build_rule(config: Config, inputs: Inputs) -> MaskRule | None:
    """The rule of a configuration, whose weights come from torch's generator; ``None`` for random.

    Example:
        >>> from metamae.config import make_config
        >>> from metamae.inputs import Tabular
        >>> from metamae.model.mask_rules import build_rule
        >>> config = make_config("tabular", overrides=["masking.rule=attention"])
        >>> build_rule(config, (Tabular(name="row", columns=32),)).guides(32)
        3
    """
    masking = config.masking
    match masking.rule:
        case "attention":
            return AttentionRule(masking.attention_rows, masking.rule_share)
        case "hard":
            return HardRule(config.encoder.width, masking.rule_share)
        case "adaptive":
            return AdaptiveRule(inputs, config.encoder, masking.rule_share)
    return None


__all__ = [
    "RULES",
    "AdaptiveRule",
    "AttentionRule",
    "HardRule",
    "MaskRule",
    "OpenSplit",
    "build_rule",
]
