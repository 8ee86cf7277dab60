"""Configuration: frozen dataclasses, filled from YAML presets and ``key=value`` overrides.

Unknown keys and wrong types are errors that name the nearest key. The resolved configuration is
written into every run folder and checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

import yaml

from metamae.arguments import check_text
from metamae.config.checks import check_fields, require
from metamae.config.reading import build, plain
from metamae.config.sections import (
    AdaptationConfig,
    BaselineConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    LearnConfig,
    MaskingConfig,
    ProbeConfig,
    TargetConfig,
    TrainingConfig,
)
from metamae.errors import ConfigError, suggest

METHODS = (
    *("random", "emix", "shed", "capri", "mae_linear", "lfr"),
    *("mae", "umae", "mae_contrast", "gon", "metamae", "supervised"),
)
"""Known methods, in the order of a report."""

_registered: list[str] = []


def known_methods() -> tuple[str, ...]:
    """:data:`METHODS`, and what others have registered, in that order."""
    return (*METHODS, *_registered)


def check_method(name: str, where: str = "") -> None:
    """Raise ``ConfigError`` unless a method is known; ``where`` it was named goes into the error.

    Packages that name a module under the entry point ``metamae.methods`` are asked for it, by
    importing that module, which calls :func:`metamae.methods.register_method`.
    """
    check_text(name, "a method")
    if name not in known_methods():
        load_methods()
    known = known_methods()
    if name not in known:
        place = f" in {where}" if where else ""
        raise ConfigError(
            f"expected a method among {', '.join(known)}{place}, {suggest(name, known)}"
        )


def load_methods() -> None:
    """Import what other packages name under the entry point ``metamae.methods``."""
    for entry in entry_points(group="metamae.methods"):
        entry.load()


def add_method(name: str) -> None:
    """Make a method's name known; :func:`metamae.methods.register_method` does the rest."""
    if name not in known_methods():
        _registered.append(name)


PRESETS = ("pocket", "paper", "shared")
"""Kinds of presets: small; Table 8 of the paper; Table 9, three settings shared."""

COMPARED = ("random", "mae", "metamae")
"""The methods that are compared when none are named."""

LARGEST_SEED = 2**64 - 1
"""The largest that torch's generators take."""

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
        forced = "on" in (self.training.compile, self.training.cuda_graphs)
        policy = self.adaptation.differentiation
        expected = (
            "adaptation.differentiation unrolled or first_order where training.compile=on or "
            "training.cuda_graphs=on"
        )
        require(policy in TRACED or not forced, expected, policy)
        expected = (
            "training.cuda_graphs=off and training.compile=off or auto where learn.settings names "
            "some"
        )
        settings = f"cuda_graphs={self.training.cuda_graphs}, compile={self.training.compile}"
        require(not (forced and self.learn.settings), expected, settings)
        self._refuse_coarse_differences()
        self._refuse_changing_shapes(forced)
        self._refuse_blind_rules()
        self._refuse_unseen_views()
        self._refuse_idle_teachers()
        self._refuse_mixed_latents()
        self._refuse_repeated_masks()
        names = self.learn.settings
        expected = f"no learn.settings with method={self.method}, which has none to learn"
        require(not names or self.method not in UNSETTLED, expected, names)
        training = self.training
        plain = training.accumulate == 1 and training.clip_norm == 0 and training.warmup_steps == 0
        require(
            (plain and training.schedule == "constant") or not self.learn.settings,
            "training.schedule=constant, warmup_steps=0, clip_norm=0 and accumulate=1 where "
            "learn.settings names some",
            f"{training.schedule}, {training.warmup_steps}, {training.clip_norm} and "
            f"{training.accumulate}",
        )

    def _refuse_changing_shapes(self, forced: bool) -> None:
        """A ratio drawn anew changes every shape: a compiled step is of one."""
        drawn = self.masking.ratio_range
        expected = (
            "masking.ratio_range empty where training.compile=on, training.cuda_graphs=on or "
            "learn.settings names some"
        )
        require(not (drawn and (forced or self.learn.settings)), expected, drawn)
        held = self.adaptation.reduction
        expected = "adaptation.reduction=0 where learn.settings names some"
        require(not (held and self.learn.settings), expected, held)

    def _refuse_blind_rules(self) -> None:
        """A mask rule that sees the network: where it is asked for, it must be able to."""
        rule = self.masking.rule
        if rule == "random":
            return
        masks = self.method not in METHODS or self.method in RULED
        expected = f"masking.rule=random, or a method among {', '.join(RULED)}"
        require(masks, expected, f"{rule} with {self.method}")
        require(
            not self.learn.settings, "masking.rule=random where learn.settings names some", rule
        )
        blocks = self.encoder.depth > 0
        require(blocks, "encoder.depth >= 1 where masking.rule is not random", self.encoder.depth)

    def _refuse_unseen_views(self) -> None:
        """A second view: for methods that contrast, at random masks; so is a term."""
        view, term = self.contrast.view, self.contrast.term
        if term != "nt_xent":
            contrasts = self.method not in METHODS or self.method in CONTRASTED
            expected = f"contrast.term=nt_xent, or a method among {', '.join(CONTRASTED)}"
            require(contrasts, expected, f"{term} with {self.method}")
            fixed = not self.learn.settings
            require(fixed, "contrast.term=nt_xent where learn.settings names some", term)
        if view == "own":
            return
        contrasts = self.method not in METHODS or self.method in CONTRASTED
        expected = f"contrast.view=own, or a method among {', '.join(CONTRASTED)}"
        require(contrasts, expected, f"{view} with {self.method}")
        rule = self.masking.rule
        require(rule == "random", f"masking.rule=random with contrast.view={view}", rule)
        fixed = not self.learn.settings
        require(fixed, "contrast.view=own where learn.settings names some", view)

    def _refuse_idle_teachers(self) -> None:
        """A teacher: for methods that predict masked tokens, of an encoder with blocks."""
        if self.target.kind == "values":
            return
        predicts = self.method not in METHODS or self.method in PREDICTING
        expected = f"target.kind=values, or a method among {', '.join(PREDICTING)}"
        require(predicts, expected, f"{self.target.kind} with {self.method}")
        fixed = not self.learn.settings
        require(fixed, "target.kind=values where learn.settings names some", self.target.kind)
        depth = self.encoder.depth
        require(depth > 0, "encoder.depth >= 1 where target.kind=teacher", depth)
        normalised = self.decoder.normalise_targets
        expected = "decoder.normalise_targets=false where target.kind=teacher, whose states are"
        require(not normalised, expected, normalised)

    def _refuse_mixed_latents(self) -> None:
        """A mix of blocks: for methods that predict from an encoder with blocks, unrefined."""
        if not self.decoder.mix_blocks:
            return
        takes = self.method not in METHODS or self.method in MIXED
        expected = f"decoder.mix_blocks=false, or a method among {', '.join(MIXED)}"
        require(takes, expected, f"true with {self.method}")
        depth = self.encoder.depth
        require(depth > 0, "encoder.depth >= 1 where decoder.mix_blocks=true", depth)

    def _refuse_repeated_masks(self) -> None:
        """Several masks of an example: where a loss is a mean over them."""
        takes = self.target.masks == 1 or self.method not in METHODS or self.method in REPEATED
        expected = f"target.masks=1, or a method among {', '.join(REPEATED)}"
        require(takes, expected, f"{self.target.masks} with {self.method}")

    def _refuse_coarse_differences(self) -> None:
        """The difference of two gradients in bfloat16 is rounding noise."""
        differences = self.adaptation.differentiation == "finite_difference"
        refines = self.method not in METHODS or self.method in REFINING
        expected = (
            "training.autocast=off, or another policy, where "
            "adaptation.differentiation=finite_difference"
        )
        coarse = differences and refines and self.training.autocast != "off"
        require(not coarse, expected, self.training.autocast)

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
