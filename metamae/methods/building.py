"""From a configuration to a method, with weights that depend on its seed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

from metalearn.randomness import fold, seeded
from metamae.arguments import check_text
from metamae.config.names import METHODS, add_method, known_methods, load_methods
from metamae.config.schema import Config
from metamae.data.dataset import Task
from metamae.errors import ConfigError
from metamae.inputs import Inputs
from metamae.methods.baselines.capri import Capri
from metamae.methods.baselines.emix import EMix
from metamae.methods.baselines.mae_linear import LinearMAE
from metamae.methods.baselines.shed import ShED
from metamae.methods.baselines.supervised import Supervised
from metamae.methods.gon import GON, OriginAutoencoder
from metamae.methods.learning import build_learning
from metamae.methods.lfr import LFR
from metamae.methods.mae import MAE, Untrained
from metamae.methods.mae_contrast import ContrastiveMAE
from metamae.methods.metamae import MetaMAE
from metamae.methods.method import Method
from metamae.methods.objective import build_adapter, build_contrast
from metamae.methods.umae import UMAE
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.backbone import Backbone
from metamae.model.mask_rules import build_rule
from metamae.model.masking import Masking
from metamae.model.views import VIEWS

CLASSES: Mapping[str, type[Method[Any]]] = MappingProxyType(
    {
        "random": Untrained,
        "emix": EMix,
        "shed": ShED,
        "capri": Capri,
        "mae_linear": LinearMAE,
        "lfr": LFR,
        "mae": MAE,
        "umae": UMAE,
        "mae_contrast": ContrastiveMAE,
        "gon": GON,
        "metamae": MetaMAE,
        "supervised": Supervised,
    }
)
"""Methods of the package by name, in the order of :data:`metamae.config.METHODS`."""


def method_sources() -> dict[str, object]:
    """What makes each known method: its class, or what another package registered."""
    load_methods()
    return {name: CLASSES.get(name) or _registered[name] for name in known_methods()}


Builder: TypeAlias = Callable[[Config, Inputs, Task | None], Method[Any]]
_registered: dict[str, Builder] = {}


def register_method(name: str, build: Builder) -> None:
    """Make a method of your own known by name, to configurations, sweeps, commands and reports.

    Registering a name again replaces its builder, so that a module may be reloaded. Where commands
    and the workers of a sweep are to find the method, name its module under the entry point
    ``metamae.methods`` of your package; ``docs/extending.md`` shows how.

    Args:
        name: Its name, which no method of the package may have.
        build: Makes it from the configuration, the inputs, and the task where there is one; the
            weights come from torch's global generator, which is seeded.

    Raises:
        ConfigError: the name of a method of the package.

    Example:
        >>> from metamae.methods import register_method
        >>> register_method("mae", lambda config, inputs, task: None)
        Traceback (most recent call last):
        ...
        metamae.errors.ConfigError: expected a new name for a method, got 'mae', which is taken
    """
    check_text(name, "a name")
    if name in METHODS:
        raise ConfigError(f"expected a new name for a method, got {name!r}, which is taken")
    add_method(name)
    _registered[name] = build


def build_method(config: Config, inputs: Inputs, task: Task | None = None) -> Method[Any]:
    """Build a method with weights that depend on ``config.seed`` alone.

    Methods that share a seed and sizes share the initial weights of the encoder, and of the
    decoder where they have one. The global random state is left as it was.

    Args:
        config: The resolved configuration.
        inputs: Specifications of the inputs.
        task: What labels mean; only the supervised method needs it.

    Raises:
        ConfigError: settings that do not fit the method or the inputs.

    Example:
        >>> from metamae.config.presets import make_config
        >>> from metamae.inputs import Signal
        >>> from metamae.methods.building import build_method
        >>> spec = Signal(name="signal", channels=6, length=128, token_length=4)
        >>> build_method(make_config("sensors"), (spec,)).network.encoder.norm.normalized_shape
        (128,)
    """
    build = build_baseline if config.method in BASELINES else _registered.get(config.method)
    if build is not None:
        with seeded(config.seed):
            return build(config, inputs, task)
    _refuse_blind_decoder(config)
    masking = Masking(
        inputs,
        config.masking.mask_ratio,
        config.masking.nearby_ratio,
        config.decoder.query_fraction,
        config.masking.ratio_range,
    )
    with seeded(config.seed):
        network = _build_network(config, inputs, masking)
        method = _build_masked(config, network)
        network.rule = build_rule(config, inputs)  # last: all else starts as without it
    return method


def _build_network(config: Config, inputs: Inputs, masking: Masking) -> MaskedAutoencoder:
    parts = (inputs, config.encoder, config.decoder, masking)
    support_mean = config.adaptation.support_mean
    if config.method != "gon":
        return MaskedAutoencoder(*parts, target=config.target, support_mean=support_mean)
    adaptation = replace(config.adaptation, step_size=config.baseline.gon.step_size)
    adapter = build_adapter(adaptation, config.encoder.width)
    return OriginAutoencoder(*parts, adapter=adapter, support_mean=support_mean)


def _build_masked(config: Config, network: MaskedAutoencoder) -> MAE:
    match config.method:
        case "umae":
            if config.baseline.uniformity:
                _refuse_single_examples(config)
            return UMAE(network, weight=config.baseline.uniformity, masks=config.target.masks)
        case "mae_contrast":
            return ContrastiveMAE(
                network,
                build_contrast(config),
                contrast_weight=config.contrast.weight,
                view=VIEWS[config.contrast.view](config.contrast, network.inputs),
            )
        case "gon":
            assert isinstance(network, OriginAutoencoder)
            return GON(network)
        case "metamae":
            return _build_metamae(config, network)
        case "random":
            return Untrained(network)
    return MAE(network, masks=config.target.masks)


def _build_metamae(config: Config, network: MaskedAutoencoder) -> MetaMAE:
    if config.learn.settings:
        return _build_learning(config, network)
    return MetaMAE(
        network,
        build_adapter(config.adaptation, config.encoder.width),
        build_contrast(config),
        contrast_weight=config.contrast.weight,
        view=VIEWS[config.contrast.view](config.contrast, network.inputs),
    )


def _build_learning(config: Config, network: MaskedAutoencoder) -> MetaMAE:
    adaptation = config.adaptation
    if "step_size" in config.learn.settings:
        adaptation = replace(adaptation, learned="scalar")
    adapter = build_adapter(adaptation, config.encoder.width)
    return build_learning(config, network, adapter, build_contrast(config))


def _refuse_blind_decoder(config: Config) -> None:
    """Without a block, predictions of masked tokens do not depend on the latent at all."""
    contrasted = config.method in ("metamae", "mae_contrast") and config.contrast.weight > 0
    if config.decoder.depth == 0 and config.method != "random" and not contrasted:
        raise ConfigError(
            f"expected decoder.depth >= 1 for {config.method} without a contrast, got 0: masked "
            "tokens would never see the latent, and the encoder would not be trained; for a "
            "masked autoencoder without a deep decoder use method mae_linear"
        )


def _refuse_single_examples(config: Config) -> None:
    if config.training.batch_size < 2:
        raise ConfigError(
            f"expected training.batch_size >= 2 for {config.method}, which compares the examples "
            "of a batch, got 1; use a larger batch or another method"
        )


BASELINES = ("emix", "shed", "capri", "mae_linear", "lfr", "supervised")
"""Methods without a decoder, by the name that a configuration uses."""


def build_baseline(config: Config, inputs: Inputs, task: Task | None = None) -> Method[Any]:
    """Build one of :data:`BASELINES`; the weights come from torch's global generator.

    Raises:
        ConfigError: a task is needed and missing, or settings that do not fit the inputs.
    """
    network, width = Backbone(inputs, config.encoder), config.encoder.width
    baseline = config.baseline
    match config.method:
        case "emix":
            return EMix(network, width, baseline.emix)
        case "shed":
            return ShED(network, width, baseline.corruption)
        case "capri":
            return Capri(network, width, baseline.corruption, baseline.capri)
        case "mae_linear":
            return LinearMAE(
                network, width, baseline.corruption, reconstruction=baseline.reconstruction
            )
        case "lfr":
            _refuse_single_examples(config)
            return LFR(network, width, baseline.lfr, seed=fold(config.seed, "random projectors"))
        case "supervised":
            if task is None:
                raise ConfigError(
                    "expected a task for method supervised, whose head it shapes, got none; "
                    "pass the data set's task"
                )
            return Supervised(network, width, task)
        case other:
            raise ConfigError(f"expected a baseline among {', '.join(BASELINES)}, got {other!r}")
