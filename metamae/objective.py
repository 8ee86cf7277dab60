"""The pretraining objectives: plain masked autoencoding, and MetaMAE.

Every method is a module with one contract (:class:`Method`): it draws its own randomness from a
generator, computes a loss from a batch and that draw alone, and gives features of unmasked data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

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
from metamae.config import AdaptationConfig, Config
from metamae.errors import ConfigError, InputError
from metamae.inputs import Batch, Inputs, check_batch
from metamae.masking import Masking, Split
from metamae.randomness import seeded

POLICIES: dict[str, GradientPolicy] = {
    "unrolled": Unrolled(),
    "checkpointed": Checkpointed(),
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
}
"""Gradient policies by the name that a configuration uses."""


@dataclass(frozen=True)
class PretextLoss:
    """A loss to minimise and the terms it consists of, all scalars.

    ``support`` holds the inner losses ``(steps, B)`` of a method that refines; compiled, nobody
    has looked yet whether they are finite.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    support: Tensor | None = None


@runtime_checkable
class Method(Protocol):
    """What training and evaluation need of a self-supervised method."""

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """Everything random about one step, apart from dropout."""
        ...

    def __call__(self, batch: Batch, draw: Split) -> PretextLoss:
        """Loss of a batch under a draw."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """Features ``(B, D)`` of unmasked examples."""
        ...

    def monitor(self, batch: Batch, draw: Split) -> dict[str, float]:
        """Numbers worth a curve that training itself does not need."""
        ...


class MAE(nn.Module):
    r"""Masked autoencoder with a deep decoder (paper, section 2.1, Eq. 1).

    .. math:: L = \frac{1}{B} \sum_b L_{query}(e(S_b))

    Args:
        network: The masked autoencoder.
    """

    def __init__(self, network: MaskedAutoencoder) -> None:
        """See the class."""
        super().__init__()
        self.network = network

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A support/query split for every example."""
        return self.network.masking.draw(batch_size, generator)

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        self._check(batch, split)
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        query = self.network.query_loss(latent, targets, split).mean()
        return PretextLoss(query, {"query": query.detach()})

    def _check(self, batch: Batch, split: Split) -> None:
        size = check_batch(self.network.inputs, batch, exact=True)
        if size != len(split.support_idx):
            raise InputError(
                f"expected a split of {size} examples, as in the batch, got one of "
                f"{len(split.support_idx)}; draw it for this batch size"
            )

    def features(self, batch: Batch) -> Tensor:
        """Mean token features ``(B, D)``."""
        return self.network.features(batch)

    def monitor(self, batch: Batch, split: Split) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}

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
        self._check(batch, split)
        targets = self.network.tokenizer.targets(batch)
        result = self.meta(
            self.network.visible_tokens(batch, split),
            support_loss=lambda latent: self.network.support_loss(latent, targets, split),
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
        adaptation = self.meta.adapter(
            latent,
            lambda z: self.network.support_loss(z, targets, split),
            final_loss=True,
        )
        means = adaptation.losses.mean(dim=1)
        return {"support_before": means[0].item(), "support_after": means[-1].item()}

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised and refined latent."""
        targets = self.network.tokenizer.targets(batch)
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        refined = self.meta.adapter(
            latent, lambda z: self.network.support_loss(z, targets, split)
        ).latent
        return latent, refined


def build_method(config: Config, inputs: Inputs) -> MAE:
    """Build a method with weights that depend on ``config.seed`` alone.

    Methods that share a seed and sizes share the initial weights of encoder and decoder. The
    global random state is left as it was.

    Example:
        >>> from metamae.config import make_config
        >>> from metamae.inputs import Signal
        >>> from metamae.objective import build_method
        >>> spec = Signal(name="signal", channels=6, length=128, token_length=4)
        >>> build_method(make_config("sensors"), (spec,)).network.encoder.norm.normalized_shape
        (128,)
    """
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
        return MetaMAE(
            network,
            build_adapter(config.adaptation, config.encoder.width),
            _build_contrast(config),
            contrast_weight=config.contrast.weight,
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
        step_size, steps=config.steps, differentiation=POLICIES[config.differentiation]
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
