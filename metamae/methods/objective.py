"""From a configuration to the parts of MetaMAE's objective: the inner step and the contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    FixedStepSize,
    GradientPolicy,
    HeldStepSize,
    Isotropy,
    LatentAdapter,
    LearnedStepSize,
    MeanPool,
    Projector,
    StepSize,
    TaskContrastiveLoss,
    Unrolled,
    vicreg,
)
from metalearn.contrast import nt_xent
from metamae.config.schema import Config
from metamae.config.sections import AdaptationConfig
from metamae.errors import ConfigError

POLICIES: dict[str, GradientPolicy] = {
    "unrolled": Unrolled(recompute=True),
    "checkpointed": Checkpointed(recompute=True),
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
}
"""Gradient policies by the name that a configuration uses."""


TERMS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"nt_xent": nt_xent, "vicreg": vicreg, "isotropy": Isotropy}
)
"""What compares two views, by the name that ``contrast.term`` uses."""


def build_adapter(config: AdaptationConfig, width: int) -> LatentAdapter:
    """The latent adapter that a configuration describes, for latents ``width`` wide."""
    step_size: StepSize = FixedStepSize(config.step_size)
    if config.reduction:
        step_size = HeldStepSize(config.step_size, config.reduction)
    elif config.learned != "none":
        step_size = LearnedStepSize(
            config.step_size,
            channels=width if "channel" in config.learned else None,
            steps=config.steps if "step" in config.learned else None,
        )
    return LatentAdapter(
        step_size,
        steps=config.steps,
        differentiation=POLICIES[config.differentiation],
        chunk_size=config.chunk_size or None,
    )


def build_contrast(config: Config) -> TaskContrastiveLoss | None:
    """The contrast that a configuration describes; ``None`` where it has no weight.

    Raises:
        ConfigError: batches of one example.
    """
    if config.contrast.weight == 0:
        return None
    if config.training.batch_size < 2:
        raise ConfigError(
            "expected training.batch_size >= 2 for a contrast, which needs other examples, got 1; "
            "use a larger batch, or contrast.weight=0"
        )
    contrast, pool = config.contrast, MeanPool(skip=1)
    projector = Projector(config.encoder.width, contrast.hidden, contrast.out)
    if contrast.term == "nt_xent":
        return TaskContrastiveLoss(projector, temperature=contrast.temperature, pool=pool)
    term = vicreg if contrast.term == "vicreg" else Isotropy(contrast.out)
    return TaskContrastiveLoss(projector, term=term, pool=pool)
