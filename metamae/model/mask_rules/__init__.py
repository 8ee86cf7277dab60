"""Rules by which tokens are masked, by name; a file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metamae.config.schema import Config
from metamae.model.mask_rules.attention import AttentionRule
from metamae.model.mask_rules.hard import HardRule
from metamae.model.mask_rules.rule import MaskRule, OpenSplit
from metamae.model.masking import Masking

RULES: Mapping[str, type[MaskRule] | type[Masking]] = MappingProxyType(
    {"random": Masking, "attention": AttentionRule, "hard": HardRule}
)
"""By the name that ``masking.rule`` uses."""


def build_rule(config: Config) -> MaskRule | None:
    """The rule of a configuration, whose weights come from torch's generator; ``None`` for random.

    Example:
        >>> from metamae.config import make_config
        >>> from metamae.model.mask_rules import build_rule
        >>> build_rule(make_config("sensors", overrides=["masking.rule=attention"])).guides(32)
        3
    """
    masking = config.masking
    match masking.rule:
        case "attention":
            return AttentionRule(masking.attention_rows, masking.rule_share)
        case "hard":
            return HardRule(config.encoder.width, masking.rule_share)
    return None


__all__ = ["RULES", "AttentionRule", "HardRule", "MaskRule", "OpenSplit", "build_rule"]
