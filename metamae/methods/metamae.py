"""MetaMAE: the latent is refined on the support before it predicts the query (Eq. 2 to 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn import HeldStepSize, LatentAdapter, MetaLoss, MetaObjective, TaskContrastiveLoss
from metamae.errors import ConfigError
from metamae.inputs import Batch
from metamae.methods.mae import MAE
from metamae.methods.method import Parts, PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.masking import Split
from metamae.model.views import RandomQuantization, ViewedSplit

OBSERVED = 10
"""Steps between two looks at what a refinement takes off the support loss."""


class RefiningMAE(MAE):
    """What methods share whose latent is refined before it predicts the query."""

    @property
    def adapter(self) -> LatentAdapter:
        """Refines the latent."""
        raise NotImplementedError

    @property
    def observes_every(self) -> int:
        """Steps between two looks at what a refinement takes off, where that is held."""
        return OBSERVED if isinstance(self.adapter.step_size, HeldStepSize) else 0

    @torch.no_grad()
    def observe(self, batch: Batch, split: Split) -> None:
        """Move a step size that is held towards its reduction of the support loss."""
        adapter = self.adapter
        if isinstance(adapter.step_size, HeldStepSize):
            _, latent, inner = amortise(self.network, adapter, batch, split)
            adapter.step_size.observe(adapter, latent, inner)

    def monitor(self, batch: Batch, split: Split) -> dict[str, float]:
        """Mean support loss before and after refinement, and a step size that is held."""
        numbers = super().monitor(batch, split)
        numbers |= self.support_losses(self.network, batch, split)
        held = self.adapter.step_size
        if isinstance(held, HeldStepSize):
            numbers["step_size"] = float(held(0, 0))
        return numbers

    @torch.no_grad()
    def support_losses(
        self, network: MaskedAutoencoder, batch: Batch, split: Split
    ) -> dict[str, float]:
        """The same under a network that may read splits of another ratio."""
        batch_refined = refine(network, self.adapter, batch, split, final_loss=True)
        means = batch_refined.losses.mean(dim=1)  # (steps + 1, B) -> (steps + 1,)
        return {"support_before": means[0].item(), "support_after": means[-1].item()}

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Latent before and after refinement, both ``(B, 1 + S, D)``."""
        batch_refined = refine(self.network, self.adapter, batch, split)
        return batch_refined.latent, batch_refined.refined


class MetaMAE(RefiningMAE):
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
        view: What makes the view that the refined latent is aligned with, in place of the latent
            before: the same visible tokens of a changed example, encoded.

    Raises:
        ConfigError: a decoder that mixes the encoder's blocks.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        adapter: LatentAdapter,
        contrast: TaskContrastiveLoss | None,
        *,
        contrast_weight: float = 1.0,
        view: RandomQuantization | None = None,
    ) -> None:
        """See the class."""
        super().__init__(network)
        if network.mixes_blocks:
            raise ConfigError(
                "expected decoder.mix_blocks=false for MetaMAE, whose refined latent is of the "
                "encoder's last block, got true; use mae, umae or mae_contrast with it"
            )
        self.view = view
        # The bound method, not the module: its weights must not be registered a second time.
        self.meta = MetaObjective(
            network.encode, adapter, contrast, contrast_weight=contrast_weight
        )

    @property
    def adapter(self) -> LatentAdapter:
        """Refines the latent, class token included."""
        return self.meta.adapter

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A support/query split for every example, and what is random about a second view."""
        split = super().draw(batch_size, generator)
        if self.view is None:
            return split
        return ViewedSplit.of(split, self.view.draw(batch_size, generator))

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch, Eq. 4."""
        if self.view is not None:
            parts, losses = self._parts(batch, split)
            contrast, terms = self.joint(parts.rows, split)
            return PretextLoss(parts.own + contrast, parts.terms | terms, losses)
        result = self._under(self.meta, batch, split)
        terms = {"query": result.query.detach()}
        if result.contrast is not None:
            terms["contrast"] = result.contrast.detach()
        return PretextLoss(result.loss, terms, result.adaptation.losses)

    def _under(self, objective: Callable[..., MetaLoss], batch: Batch, split: Split) -> MetaLoss:
        self.check(batch, len(split.support_idx))
        targets = self.network.targets(batch)  # per input (B, L_i, values) or (B, L_i)
        return objective(
            self.network.visible_tokens(batch, split),  # (B, S, D)
            support_loss=support_loss(self.network, self.meta.adapter, targets, split),  # (B,)
            query_loss=lambda latent: self.network.query_loss(latent, targets, split),  # (B,)
        )

    @property
    def is_joint(self) -> bool:
        """With a contrast."""
        return self.meta.contrast is not None

    def parts(self, batch: Batch, split: Split) -> Parts:
        """Query loss, and both pooled latents."""
        return self._parts(batch, split)[0]

    def _parts(self, batch: Batch, split: Split) -> tuple[Parts, Tensor]:
        """The parts, and the support losses."""
        result = self._under(self.meta.predict, batch, split)
        contrast, terms = self.meta.contrast, {"query": result.query.detach()}
        losses = result.adaptation.losses
        if contrast is None:
            return Parts(result.query, terms), losses
        first: Any = result.latent
        if self.view is not None:
            assert isinstance(split, ViewedSplit)
            changed = self.view(batch, split.noise)
            first = self.network.encode(self.network.visible_tokens(changed, split))
        views: tuple[Any, Any] = (first, result.adaptation.latent)
        return Parts(result.query, terms, tuple(contrast.pool(view) for view in views)), losses

    def joint(self, rows: Sequence[Tensor], split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted contrast of both pooled latents."""
        assert self.meta.contrast is not None
        contrast = self.meta.contrast.compare(*rows)
        return self.meta.contrast_weight * contrast, {"contrast": contrast.detach()}

    def shard_units(self) -> list[nn.Module]:
        """The encoder's blocks: refinement runs through the decoder alone."""
        return list(self.network.encoder.blocks)

    def joint_parameters(self) -> list[nn.Parameter]:
        """Those of the projector."""
        return [] if self.meta.contrast is None else list(self.meta.contrast.parameters())


class Refined(NamedTuple):
    """A batch, encoded and refined."""

    targets: dict[str, Tensor]
    """Per input ``(B, L_i, values)`` or ``(B, L_i)``."""
    latent: Tensor
    """Amortised latent ``(B, 1 + S, D)``."""
    refined: Tensor
    """Refined latent ``(B, 1 + S, D)``."""
    losses: Tensor
    """Support losses ``(steps, B)``; one row more with ``final_loss``."""


def refine(
    network: MaskedAutoencoder,
    adapter: LatentAdapter,
    batch: Batch,
    split: Split,
    *,
    final_loss: bool = False,
) -> Refined:
    """Encode a batch and refine its latent (Eq. 2)."""
    targets, latent, inner = amortise(network, adapter, batch, split)
    adaptation = adapter(latent, inner, final_loss=final_loss)
    return Refined(targets, latent, adaptation.latent, adaptation.losses)


def amortise(
    network: MaskedAutoencoder, adapter: LatentAdapter, batch: Batch, split: Split
) -> tuple[dict[str, Tensor], Tensor, Callable[..., Tensor]]:
    """Targets of a batch, its latent ``(B, 1 + S, D)``, and the loss that refinement descends."""
    targets = network.targets(batch)  # per input (B, L_i, values) or (B, L_i)
    latent = network.encode(network.visible_tokens(batch, split))
    return targets, latent, support_loss(network, adapter, targets, split)


def support_loss(
    network: MaskedAutoencoder, adapter: LatentAdapter, targets: Mapping[str, Tensor], split: Split
) -> Callable[..., Tensor]:
    """What the adapter descends: losses of all examples, or of those in a chunk of the batch."""
    second_order = adapter.differentiation.needs_second_derivative

    def loss(latent: Tensor, tasks: slice | None = None) -> Tensor:
        if tasks is None:
            return network.support_loss(latent, targets, split, second_order=second_order)
        chosen = {name: target[tasks] for name, target in targets.items()}
        return network.support_loss(latent, chosen, split[tasks], second_order=second_order)

    return loss
