"""Configuration: frozen dataclasses, filled from YAML presets and ``key=value`` overrides.

Unknown keys and wrong types are errors that name the nearest key. The resolved configuration is
written into every run folder and checkpoint.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from metamae.errors import ConfigError

METHODS = ("random", "emix", "shed", "capri", "mae_linear", "mae", "metamae", "supervised")
"""Known methods, in the order of a report."""

PRESETS = ("pocket", "paper", "shared")
"""Kinds of presets: small; Table 8 of the paper; Table 9, three settings shared."""

COMPARED = ("random", "mae", "metamae")
"""The methods that are compared when none are named."""


LEARNABLE = ("step_size", "contrast_weight", "nearby_ratio", "mask_ratio", "temperature")
"""Settings that ``learn.settings`` may name."""


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise ConfigError(f"expected {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Transformer encoder; the defaults are the paper's (section 3.1)."""

    width: int = 256
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 2.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check sizes."""
        _check_transformer("encoder", self.width, self.heads, self.depth, self.mlp_ratio)
        _require(0 <= self.dropout < 1, "encoder.dropout in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Transformer decoder; the paper chooses the depth per data set (Table 8).

    ``attention`` is ``self`` (the paper's) or ``cross``: mask tokens read from the latents only.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 2.0
    attention: Literal["self", "cross"] = "self"

    def __post_init__(self) -> None:
        """Check sizes."""
        _check_transformer("decoder", self.width, self.heads, self.depth, self.mlp_ratio)


def _check_transformer(name: str, width: int, heads: int, depth: int, mlp_ratio: float) -> None:
    _require(width > 0 and width % 4 == 0, f"{name}.width to be a positive multiple of 4", width)
    _require(heads > 0 and width % heads == 0, f"{name}.heads to divide {name}.width", heads)
    _require(depth >= 0, f"{name}.depth >= 0", depth)
    _require(_positive(mlp_ratio), f"{name}.mlp_ratio > 0", mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Shares of masked tokens, and of nearby tokens drawn into the support (section 2.2)."""

    mask_ratio: float = 0.5
    nearby_ratio: float = 0.1


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Latent refinement: ``z' = z - step_size * gradient`` (Eq. 2).

    ``learned`` is ``none`` for a fixed step size, or the axes that get their own learned one.
    ``chunk_size`` refines that many examples at a time, 0 the whole batch; with ``checkpointed`` it
    bounds memory.
    ``support_mean`` is explained at :class:`metamae.autoencoder.MaskedAutoencoder`.
    """

    step_size: float = 0.5
    steps: int = 1
    differentiation: Literal["unrolled", "first_order", "checkpointed", "finite_difference"] = (
        "unrolled"
    )
    chunk_size: int = 0
    learned: Literal["none", "scalar", "channel", "step", "channel_step"] = "none"
    support_mean: Literal["task", "batch"] = "task"

    def __post_init__(self) -> None:
        """Check ranges."""
        finite = 0 <= self.step_size < float("inf")
        _require(finite, "a finite adaptation.step_size >= 0", self.step_size)
        learnable = self.step_size > 0 or self.learned == "none"
        _require(learnable, "adaptation.step_size > 0 where it is learned", self.step_size)
        _require(self.steps >= 1, "adaptation.steps >= 1", self.steps)
        _require(self.chunk_size >= 0, "adaptation.chunk_size >= 0", self.chunk_size)
        whole = self.chunk_size == 0 or self.support_mean == "task"
        _require(whole, "adaptation.chunk_size=0 with support_mean=batch", self.chunk_size)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Task-contrastive loss (Eq. 3-4): its weight, temperature and projector.

    It needs an inner step: with ``adaptation.step_size=0`` both views of an example are equal, and
    what is left only pushes the examples of a batch apart.
    """

    weight: float = 1.0
    temperature: float = 0.5
    hidden: int = 1024
    out: int = 128

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.weight >= 0, "contrast.weight >= 0", self.weight)
        _require(_positive(self.temperature), "contrast.temperature > 0", self.temperature)
        _require(self.hidden >= 1, "contrast.hidden >= 1", self.hidden)
        _require(self.out >= 1, "contrast.out >= 1", self.out)


@dataclass(frozen=True, kw_only=True)
class EMixConfig:
    """e-Mix: shares of a mixture are Beta(alpha, alpha); similarities of ``out``-wide vectors.

    ``weighting`` is ``per_example``, or ``as_published``: batch means of shares times batch means
    of losses, to which the published code's broadcasting amounts.
    """

    alpha: float = 1.0
    temperature: float = 0.2
    out: int = 128
    weighting: Literal["per_example", "as_published"] = "per_example"

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(_positive(self.alpha), "baseline.emix.alpha > 0", self.alpha)
        _require(_positive(self.temperature), "baseline.emix.temperature > 0", self.temperature)
        _require(self.out >= 1, "baseline.emix.out >= 1", self.out)


@dataclass(frozen=True, kw_only=True)
class CapriConfig:
    """Capri: which positions predict and compete, and how they are scored.

    ``positions`` is ``all``, as in the published code, or ``masked``, as it is described.
    """

    temperature: float = 0.07
    positions: Literal["all", "masked"] = "all"
    normalise: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(_positive(self.temperature), "baseline.capri.temperature > 0", self.temperature)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The baselines of DABS.

    ``corruption`` is the share of tokens that ShED moves, and that Capri and the linear MAE zero;
    the default is DABS's, for no rate per data set was published. ``reconstruction`` is the linear
    MAE's loss of one real token: the L2 ``norm`` of its error, as published, or the mean
    ``squared`` error, as of the MAE with a deep decoder.
    """

    corruption: float = 0.15
    reconstruction: Literal["norm", "squared"] = "norm"
    emix: EMixConfig = field(default_factory=EMixConfig)
    capri: CapriConfig = field(default_factory=CapriConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(0 < self.corruption < 1, "baseline.corruption in (0, 1)", self.corruption)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Pretraining: AdamW at a constant rate, as published.

    ``compile`` traces the whole loss by ``torch.compile`` (minutes at first, then every step is
    faster); ``cuda_graphs`` replays it as recorded graphs where the device is CUDA.
    """

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    autocast: Literal["off", "bfloat16"] = "off"
    compile: Literal["off", "on"] = "off"
    cuda_graphs: Literal["off", "on"] = "off"
    log_every: int = 10
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.steps >= 0, "training.steps >= 0", self.steps)
        for name in ("batch_size", "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"training.{name} >= 1", getattr(self, name))
        _require(_positive(self.learning_rate), "training.learning_rate > 0", self.learning_rate)
        _require(self.weight_decay >= 0, "training.weight_decay >= 0", self.weight_decay)
        traced = self.compile == "on" or self.cuda_graphs == "off"
        _require(traced, "training.compile=on where training.cuda_graphs=on", self.compile)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Linear probe on frozen features: Adam with L2 decay; the last epoch is reported.

    The defaults are the published protocol. ``standardise`` scales features by the mean and
    deviation of the training rows first (not published; an aid for short budgets).
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    standardise: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.epochs >= 1, "probe.epochs >= 1", self.epochs)
        _require(self.batch_size >= 1, "probe.batch_size >= 1", self.batch_size)
        _require(_positive(self.learning_rate), "probe.learning_rate > 0", self.learning_rate)
        _require(self.weight_decay >= 0, "probe.weight_decay >= 0", self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Settings of MetaMAE that an outer level learns on held-out unlabelled data.

    ``settings`` names them, among :data:`LEARNABLE`; they start at their configured values. Every
    ``unroll_steps`` steps, after ``warmup_steps``, Adam moves them at ``learning_rate`` along a
    hypergradient of the reference loss: the query loss of ``held_out`` of the pretraining examples
    at ``reference_ratios`` and ``reference_nearby``. The mask ratio of a training step is drawn
    around its learned mean with deviation ``mask_spread``. See docs/multilevel.md.
    """

    settings: tuple[str, ...] = ()
    hypergradient: Literal["darts", "sama"] = "sama"
    learning_rate: float = 0.05
    unroll_steps: int = 4
    warmup_steps: int = 20
    held_out: float = 0.1
    reference_ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    reference_nearby: float = 0.1
    mask_spread: float = 0.1

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name in self.settings:
            if name not in LEARNABLE:
                raise ConfigError(
                    f"expected settings to learn among {', '.join(LEARNABLE)}, "
                    f"{near(name, LEARNABLE)}"
                )
        distinct = len(set(self.settings)) == len(self.settings)
        _require(distinct, "learn.settings without repetition", self.settings)
        _require(_positive(self.learning_rate), "learn.learning_rate > 0", self.learning_rate)
        _require(self.unroll_steps >= 1, "learn.unroll_steps >= 1", self.unroll_steps)
        _require(self.warmup_steps >= 0, "learn.warmup_steps >= 0", self.warmup_steps)
        _require(0 < self.held_out < 1, "learn.held_out between 0 and 1", self.held_out)
        inside = all(0 < ratio < 1 for ratio in self.reference_ratios)
        fit = bool(self.reference_ratios) and inside
        _require(fit, "learn.reference_ratios between 0 and 1", self.reference_ratios)
        nearby = 0 <= self.reference_nearby <= 1
        _require(nearby, "learn.reference_nearby in [0, 1]", self.reference_nearby)
        _require(_positive(self.mask_spread), "learn.mask_spread > 0", self.mask_spread)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run, apart from the data themselves.

    ``token_size`` overrides the data set's own: steps per token, or patch height and width.
    """

    dataset: str
    method: str = "metamae"
    preset: Literal["pocket", "paper", "shared"] = "pocket"
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

    def __post_init__(self) -> None:
        """Check the method's name, the seed, and what does not go together."""
        if self.method not in METHODS:
            raise ConfigError(
                f"expected a method among {', '.join(METHODS)}, {near(self.method, METHODS)}"
            )
        _require(self.seed >= 0, "seed >= 0", self.seed)
        policy = self.adaptation.differentiation
        traced = policy in ("unrolled", "first_order") or self.training.compile == "off"
        expected = "adaptation.differentiation unrolled or first_order where training.compile=on"
        _require(traced, expected, policy)
        compiled = self.training.compile
        plain = compiled == "off" or not self.learn.settings
        _require(plain, "training.compile=off where learn.settings names some", compiled)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, fit for YAML, JSON and checkpoints."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

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
        config: Config = _build(cls, values, "")
        return config


def near(name: str, known: Iterable[str]) -> str:
    """``got 'x'``, with the nearest known name when there is one."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"got {name!r}" + (f"; did you mean {matches[0]!r}?" if matches else "")


def load_preset(preset: str, name: str) -> dict[str, Any]:
    """Raw values of one preset file, e.g. ``load_preset("pocket", "sensors")``.

    Raises:
        ConfigError: if there is no such preset.

    Example:
        >>> from metamae.config import load_preset
        >>> load_preset("paper", "pamap2")["adaptation"]
        {'step_size': 0.5}
    """
    known = list_presets(preset)
    if name not in known:
        raise ConfigError(
            f"expected a data set with a {preset} preset ({', '.join(known)}), {near(name, known)}"
        )
    path = resources.files("metamae") / "presets" / preset / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def list_presets(preset: str) -> list[str]:
    """Names of the presets of one kind."""
    folder = resources.files("metamae") / "presets" / preset
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def make_config(
    dataset: str,
    *,
    preset: str = "pocket",
    preset_name: str | None = None,
    overrides: Iterable[str] = (),
    **values: Any,
) -> Config:
    """Resolve a configuration: defaults, then the preset, then ``values``, then overrides.

    Args:
        dataset: Name of the data set.
        preset: One of :data:`PRESETS`.
        preset_name: Preset file, when it is not called like the data set.
        overrides: Strings such as ``"training.steps=100"``; the value is read as YAML.
        values: Top-level fields such as ``method`` and ``seed``.

    Raises:
        ConfigError: on unknown names, keys, types or values.

    Example:
        >>> from metamae.config import make_config
        >>> config = make_config("sensors", overrides=["training.steps=7"], seed=3)
        >>> config.training.steps, config.seed
        (7, 3)
    """
    merged = load_preset(preset, preset_name or dataset)
    merged |= {"dataset": dataset, "preset": preset} | values
    for override in overrides:
        _apply_override(merged, override)
    return Config.from_dict(merged)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """The configuration with some settings changed.

    Raises:
        ConfigError: on unknown keys, types or values.

    Example:
        >>> from metamae.config import make_config, override
        >>> override(make_config("sensors"), ["probe.epochs=7"]).probe.epochs
        7
    """
    values = config.to_dict()
    for one in overrides:
        _apply_override(values, one)
    return Config.from_dict(values)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected an override like training.steps=100, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        reason = " ".join(str(fault).split())
        raise ConfigError(f"expected a YAML value in override {override!r}: {reason}") from fault
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"expected a section before the last dot of {key!r}")
    values[last] = value


@cache
def _field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"expected a section for {where or 'the configuration'}, got {values!r}")
    known = _field_types(cls)
    for key in values:
        if key not in known:
            raise ConfigError(
                f"expected a known key {'in ' + where if where else 'at the top'} "
                f"({', '.join(known)}), {near(str(key), known)}"
            )
    prefix = where + "." if where else ""
    built = {key: _convert(known[key], value, prefix + key) for key, value in values.items()}
    try:
        return cls(**built)
    except TypeError as missing:
        raise ConfigError(f"expected all required keys: {missing}") from missing


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false, and `on` as true.
        word = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else None
        value = word if word in arguments else value
        if value not in arguments:
            raise ConfigError(f"expected {where} among {', '.join(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(arguments[0], item, where) for item in items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as a string.
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ConfigError(f"expected {where} to be {name}, got {value!r} ({type(value).__name__})")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
