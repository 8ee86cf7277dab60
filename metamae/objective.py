"""The pretraining objectives: plain masked autoencoding, and MetaMAE.

Both keep the contract of all methods, :class:`metamae.method.Method`; :func:`build_method` builds
any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    FixedStepSize,
    GradientPolicy,
    LatentAdapter,
    LearnedStepSize,
    MeanPool,
    MetaObjective,
    Projector,
    StepSize,
    TaskContrastiveLoss,
    Unrolled,
)
from metamae.autoencoder import MaskedAutoencoder
from metamae.baselines import BASELINES, build_baseline
from metamae.config import AdaptationConfig, Config
from metamae.data.dataset import Task
from metamae.errors import ConfigError
from metamae.inputs import Batch, Inputs
from metamae.masking import Masking, Split
from metamae.method import Method, PretextLoss
from metamae.randomness import seeded

__all__ = [
    "MAE",
    "POLICIES",
    "MetaMAE",
    "Method",
    "PretextLoss",
    "build_adapter",
    "build_method",
]

POLICIES: dict[str, GradientPolicy] = {
    "unrolled": Unrolled(),
    "checkpointed": Checkpointed(),
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
}
"""Gradient policies by the name that a configuration uses."""


class MAE(Method[Split]):
    r"""Masked autoencoder with a deep decoder (paper, section 2.1, Eq. 1).

    .. math:: L = \frac{1}{B} \sum_b L_{query}(e(S_b))

    Args:
        network: The masked autoencoder.
    """

    network: MaskedAutoencoder

    def __init__(self, network: MaskedAutoencoder) -> None:
        """See the class."""
        super().__init__(network)

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A support/query split for every example."""
        return self.network.masking.draw(batch_size, generator)

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(split.support_idx))
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        query = self.network.query_loss(latent, targets, split).mean()
        return PretextLoss(query, {"query": query.detach()})

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised latent, twice: there is no refinement."""
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        return latent, latent


class MetaMAE(MAE):
    r"""Meta-learned masked autoencoder (paper, section 2.2, Eq. 2-4).

    .. math::
        z = e(S), \quad z' = z - \alpha \nabla_z L_{S \cup N(S)}(z), \quad
        L = \frac{1}{B} \sum_b L_{query}(z'_b) + \lambda\, L_{contrast}(z, z')

    with :math:`N(S)` the drawn nearby tokens. One instance of :class:`metalearn.MetaObjective`.

    Args:
        network: The masked autoencoder.
        adapter: Refines the latent, class token included.
        contrast: Aligns both latents, pooled over tokens without the class token; or ``None``.
        contrast_weight: :math:`\lambda`.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        adapter: LatentAdapter,
        contrast: TaskContrastiveLoss | None,
        *,
        contrast_weight: float = 1.0,
    ) -> None:
        """See the class."""
        super().__init__(network)
        # The bound method, not the module: its weights must not be registered a second time.
        self.meta = MetaObjective(
            network.encode, adapter, contrast, contrast_weight=contrast_weight
        )

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(split.support_idx))
        targets = self.network.tokenizer.targets(batch)
        result = self.meta(
            self.network.visible_tokens(batch, split),
            support_loss=support_loss(self.network, self.meta.adapter, targets, split),
            query_loss=lambda latent: self.network.query_loss(latent, targets, split),
        )
        terms = {"query": result.query.detach()}
        if result.contrast is not None:
            terms["contrast"] = result.contrast.detach()
        return PretextLoss(result.loss, terms, result.adaptation.losses)

    @torch.no_grad()
    def monitor(self, batch: Batch, split: Split) -> dict[str, float]:
        """Mean support loss before and after refinement."""
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        inner = support_loss(self.network, self.meta.adapter, targets, split)
        adaptation = self.meta.adapter(latent, inner, final_loss=True)
        means = adaptation.losses.mean(dim=1)
        return {"support_before": means[0].item(), "support_after": means[-1].item()}

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised and refined latent."""
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        refined = self.meta.adapter(
            latent, support_loss(self.network, self.meta.adapter, targets, split)
        ).latent
        return latent, refined


def support_loss(
    network: MaskedAutoencoder, adapter: LatentAdapter, targets: Mapping[str, Tensor], split: Split
) -> Callable[..., Tensor]:
    """What the adapter descends: losses of all examples, or of those in a chunk of the batch."""
    twice = adapter.differentiation.needs_second_derivative

    def loss(latent: Tensor, tasks: slice | None = None) -> Tensor:
        if tasks is None:
            return network.support_loss(latent, targets, split, twice=twice)
        given = {name: target[tasks] for name, target in targets.items()}
        return network.support_loss(latent, given, split[tasks], twice=twice)

    return loss


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
        >>> from metamae.config import make_config
        >>> from metamae.inputs import Signal
        >>> from metamae.objective import build_method
        >>> spec = Signal(name="signal", channels=6, length=128, token_length=4)
        >>> build_method(make_config("sensors"), (spec,)).network.encoder.norm.normalized_shape
        (128,)
    """
    if config.method in BASELINES:
        with seeded(config.seed):
            return build_baseline(config, inputs, task)
    _refuse_blind_decoder(config)
    masking = Masking(inputs, config.masking.mask_ratio, config.masking.nearby_ratio)
    with seeded(config.seed):
        network = MaskedAutoencoder(
            inputs,
            config.encoder,
            config.decoder,
            masking,
            support_mean=config.adaptation.support_mean,
        )
        if config.method != "metamae":
            return MAE(network)
        if config.learn.settings:
            return _build_learning(config, network)
        return MetaMAE(
            network,
            build_adapter(config.adaptation, config.encoder.width),
            _build_contrast(config),
            contrast_weight=config.contrast.weight,
        )


def _build_learning(config: Config, network: MaskedAutoencoder) -> MetaMAE:
    from metamae.settings import build_learning  # it builds on this module

    adaptation = config.adaptation
    if "step_size" in config.learn.settings:
        adaptation = replace(adaptation, learned="scalar")
    adapter = build_adapter(adaptation, config.encoder.width)
    return build_learning(config, network, adapter, _build_contrast(config))


def _refuse_blind_decoder(config: Config) -> None:
    """Without a block, predictions of masked tokens do not depend on the latent at all."""
    contrasted = config.method == "metamae" and config.contrast.weight > 0
    if config.decoder.depth == 0 and config.method != "random" and not contrasted:
        raise ConfigError(
            f"expected decoder.depth >= 1 for {config.method} without a contrast, got 0: masked "
            "tokens would never see the latent, and the encoder would not be trained; for a "
            "masked autoencoder without a deep decoder use method mae_linear"
        )


def build_adapter(config: AdaptationConfig, width: int) -> LatentAdapter:
    """The latent adapter that a configuration describes, for latents ``width`` wide."""
    step_size: StepSize = FixedStepSize(config.step_size)
    if config.learned != "none":
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


def _build_contrast(config: Config) -> TaskContrastiveLoss | None:
    if config.contrast.weight == 0:
        return None
    if config.training.batch_size < 2:
        raise ConfigError(
            "expected training.batch_size >= 2 for a contrast, which needs other examples, got 1; "
            "use a larger batch, or contrast.weight=0"
        )
    projector = Projector(config.encoder.width, config.contrast.hidden, config.contrast.out)
    return TaskContrastiveLoss(
        projector, temperature=config.contrast.temperature, pool=MeanPool(skip=1)
    )
