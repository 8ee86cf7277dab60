"""Rules by which tokens are masked, by name; a file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metamae.config.schema import Config
from metamae.config.sections import MaskingConfig
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


def share_grows(masking: MaskingConfig) -> bool:
    """Whether the share of a mask that the rule chooses depends on how far a run has come.

    Example:
        >>> from metamae.config import MaskingConfig
        >>> from metamae.model.mask_rules import share_grows
        >>> [share_grows(MaskingConfig(rule=rule)) for rule in ("random", "hard", "adaptive")]
        [False, True, False]
    """
    rule = RULES[masking.rule]
    first, last = masking.rule_share or (rule.shares if issubclass(rule, MaskRule) else (0, 0))
    return first != last


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
    "share_grows",
]
