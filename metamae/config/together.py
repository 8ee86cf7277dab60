"""Settings that do not go together, each refused by name."""

from __future__ import annotations

from typing import Protocol

from metamae.config.checks import require
from metamae.config.names import METHODS
from metamae.config.sections import (
    AdaptationConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    LearnConfig,
    MaskingConfig,
    TargetConfig,
    TrainingConfig,
)

TRACED = ("unrolled", "first_order")
"""Gradient policies that ``torch.compile`` can trace."""

PREDICTING = ("mae", "umae", "mae_contrast", "metamae", "random")
"""Methods that predict masked tokens, whose ``target`` may be chosen."""

CONTRASTED = ("mae_contrast", "metamae", "random")
"""Methods whose second view ``contrast.view`` may choose; nothing is trained of the last."""

RULED = ("mae", "umae", "metamae", "random")
"""Methods with one mask an example, which ``masking.rule`` may choose."""

MIXED = ("mae", "umae", "mae_contrast", "random")
"""Methods that refine no latent, whose decoder may mix the encoder's blocks."""

REPEATED = ("mae", "umae", "random")
"""Methods that predict a target from one mask, or from several by ``target.masks``."""

REFINING = ("gon", "metamae")
"""Methods that take an inner step."""

UNSETTLED = ("lfr", "gon")
"""Methods that are not asked to learn settings, for they would not."""


class Sections(Protocol):
    """What is looked at of a :class:`~metamae.config.Config`."""

    @property
    def method(self) -> str:
        """Its name."""
        ...

    @property
    def encoder(self) -> EncoderConfig:
        """A section."""
        ...

    @property
    def decoder(self) -> DecoderConfig:
        """A section."""
        ...

    @property
    def masking(self) -> MaskingConfig:
        """A section."""
        ...

    @property
    def adaptation(self) -> AdaptationConfig:
        """A section."""
        ...

    @property
    def contrast(self) -> ContrastConfig:
        """A section."""
        ...

    @property
    def learn(self) -> LearnConfig:
        """A section."""
        ...

    @property
    def training(self) -> TrainingConfig:
        """A section."""
        ...

    @property
    def target(self) -> TargetConfig:
        """A section."""
        ...


def check_together(config: Sections) -> None:
    """Raise ``ConfigError`` where settings of several sections do not go together."""
    forced = "on" in (config.training.compile, config.training.cuda_graphs)
    policy = config.adaptation.differentiation
    expected = (
        "adaptation.differentiation unrolled or first_order where training.compile=on or "
        "training.cuda_graphs=on"
    )
    require(policy in TRACED or not forced, expected, policy)
    expected = (
        "training.cuda_graphs=off and training.compile=off or auto where learn.settings names some"
    )
    settings = f"cuda_graphs={config.training.cuda_graphs}, compile={config.training.compile}"
    require(not (forced and config.learn.settings), expected, settings)
    _refuse_coarse_differences(config)
    _refuse_changing_shapes(config, forced)
    _refuse_blind_rules(config)
    _refuse_unseen_views(config)
    _refuse_idle_teachers(config)
    _refuse_mixed_latents(config)
    _refuse_repeated_masks(config)
    names = config.learn.settings
    expected = f"no learn.settings with method={config.method}, which has none to learn"
    require(not names or config.method not in UNSETTLED, expected, names)
    training = config.training
    plain = training.accumulate == 1 and training.clip_norm == 0 and training.warmup_steps == 0
    require(
        (plain and training.schedule == "constant") or not config.learn.settings,
        "training.schedule=constant, warmup_steps=0, clip_norm=0 and accumulate=1 where "
        "learn.settings names some",
        f"{training.schedule}, {training.warmup_steps}, {training.clip_norm} and "
        f"{training.accumulate}",
    )


def _refuse_changing_shapes(config: Sections, forced: bool) -> None:
    """A ratio drawn anew changes every shape: a compiled step is of one."""
    drawn = config.masking.ratio_range
    expected = (
        "masking.ratio_range empty where training.compile=on, training.cuda_graphs=on or "
        "learn.settings names some"
    )
    require(not (drawn and (forced or config.learn.settings)), expected, drawn)
    held = config.adaptation.reduction
    expected = "adaptation.reduction=0 where learn.settings names some"
    require(not (held and config.learn.settings), expected, held)


def _refuse_blind_rules(config: Sections) -> None:
    """A mask rule that sees the network: where it is asked for, it must be able to."""
    rule = config.masking.rule
    if rule == "random":
        return
    masks = config.method not in METHODS or config.method in RULED
    expected = f"masking.rule=random, or a method among {', '.join(RULED)}"
    require(masks, expected, f"{rule} with {config.method}")
    require(not config.learn.settings, "masking.rule=random where learn.settings names some", rule)
    blocks = config.encoder.depth > 0
    require(blocks, "encoder.depth >= 1 where masking.rule is not random", config.encoder.depth)


def _refuse_unseen_views(config: Sections) -> None:
    """A second view: for methods that contrast, at random masks; so is a term."""
    view, term = config.contrast.view, config.contrast.term
    if term != "nt_xent":
        contrasts = config.method not in METHODS or config.method in CONTRASTED
        expected = f"contrast.term=nt_xent, or a method among {', '.join(CONTRASTED)}"
        require(contrasts, expected, f"{term} with {config.method}")
        fixed = not config.learn.settings
        require(fixed, "contrast.term=nt_xent where learn.settings names some", term)
    if view == "own":
        return
    contrasts = config.method not in METHODS or config.method in CONTRASTED
    expected = f"contrast.view=own, or a method among {', '.join(CONTRASTED)}"
    require(contrasts, expected, f"{view} with {config.method}")
    rule = config.masking.rule
    require(rule == "random", f"masking.rule=random with contrast.view={view}", rule)
    fixed = not config.learn.settings
    require(fixed, "contrast.view=own where learn.settings names some", view)


def _refuse_idle_teachers(config: Sections) -> None:
    """A teacher: for methods that predict masked tokens, of an encoder with blocks."""
    if config.target.kind == "values":
        return
    predicts = config.method not in METHODS or config.method in PREDICTING
    expected = f"target.kind=values, or a method among {', '.join(PREDICTING)}"
    require(predicts, expected, f"{config.target.kind} with {config.method}")
    fixed = not config.learn.settings
    require(fixed, "target.kind=values where learn.settings names some", config.target.kind)
    depth = config.encoder.depth
    require(depth > 0, "encoder.depth >= 1 where target.kind=teacher", depth)
    normalised = config.decoder.normalise_targets
    expected = "decoder.normalise_targets=false where target.kind=teacher, whose states are"
    require(not normalised, expected, normalised)


def _refuse_mixed_latents(config: Sections) -> None:
    """A mix of blocks: for methods that predict from an encoder with blocks, unrefined."""
    if not config.decoder.mix_blocks:
        return
    takes = config.method not in METHODS or config.method in MIXED
    expected = f"decoder.mix_blocks=false, or a method among {', '.join(MIXED)}"
    require(takes, expected, f"true with {config.method}")
    depth = config.encoder.depth
    require(depth > 0, "encoder.depth >= 1 where decoder.mix_blocks=true", depth)


def _refuse_repeated_masks(config: Sections) -> None:
    """Several masks of an example: where a loss is a mean over them."""
    takes = config.target.masks == 1 or config.method not in METHODS or config.method in REPEATED
    expected = f"target.masks=1, or a method among {', '.join(REPEATED)}"
    require(takes, expected, f"{config.target.masks} with {config.method}")


def _refuse_coarse_differences(config: Sections) -> None:
    """The difference of two gradients in bfloat16 is rounding noise."""
    differences = config.adaptation.differentiation == "finite_difference"
    refines = config.method not in METHODS or config.method in REFINING
    expected = (
        "training.autocast=off, or another policy, where "
        "adaptation.differentiation=finite_difference"
    )
    coarse = differences and refines and config.training.autocast != "off"
    require(not coarse, expected, config.training.autocast)
