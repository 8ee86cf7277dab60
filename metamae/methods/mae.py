"""The masked autoencoder with a deep decoder (Eq. 1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from metamae.errors import ConfigError
from metamae.inputs import Batch
from metamae.methods.method import Method, PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.mask_rules.rule import OpenSplit
from metamae.model.masking import Split
from metamae.model.split_set import SplitSet, splits_of
from metamae.model.teacher import effective_rank


class MAE(Method[Split]):
    r"""Masked autoencoder with a deep decoder (paper, section 2.1, Eq. 1).

    .. math:: L = \frac{1}{B} \sum_b L_{query}(e(S_b))

    Args:
        network: The masked autoencoder.
        masks: Masks of an example in a training step, over which the loss is a mean; what is
            predicted is computed once for all of them (data2vec 2.0, Baevski et al. 2023).
    """

    mean_of_examples = True
    network: MaskedAutoencoder

    def __init__(self, network: MaskedAutoencoder, *, masks: int = 1) -> None:
        """See the class."""
        super().__init__(network)
        if masks < 1:
            raise ConfigError(f"expected one mask of an example or more, got {masks}")
        self.masks = masks

    def draw(self, batch_size: int, generator: torch.Generator) -> Split:
        """A support/query split for every example, at random whatever the mask rule."""
        return self.network.masking.draw(batch_size, generator)

    def draw_at(self, batch_size: int, generator: torch.Generator, progress: float) -> Split:
        """What the mask rule draws for a step, as many splits of an example as there are masks."""
        rule, masking = self.network.rule, self.network.masking
        splits = [
            self.draw(batch_size, generator)
            if rule is None
            else rule.draw(masking, batch_size, generator, progress)
            for _ in range(self.masks)
        ]
        return splits[0] if self.masks == 1 else SplitSet.of(splits)

    def complete(self, batch: Batch, split: Split) -> Split:
        """The split that the mask rule makes of these examples."""
        if isinstance(split, SplitSet):
            return SplitSet.of([self.complete(batch, one) for one in split.splits])
        rule = self.network.rule
        if rule is None or not isinstance(split, OpenSplit):
            return split
        self.check(batch, len(split.support_idx))
        return rule.complete(self.network, self.network.masking, batch, split)

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch, Eq. 1."""
        self.check(batch, len(split.support_idx))
        query, _ = self._predict(batch, split)
        return PretextLoss(query, {"query": query.detach()})

    def _predict(self, batch: Batch, split: Split) -> tuple[Tensor, list[Tensor]]:
        """The query loss, mean over examples and masks; and the latent under every mask."""
        network, losses, latents = self.network, [], []
        targets = network.targets(batch)  # per input (B, L_i, values) or (B, L_i)
        for one in splits_of(split):
            latents.append(network.encode(network.visible_tokens(batch, one)))  # (B, 1 + S, D)
            losses.append(network.query_loss(latents[-1], targets, one).mean())  # (B,) -> ()
        return torch.stack(losses).mean(), latents

    def after_step(self) -> None:
        """A teacher follows."""
        if self.network.teacher is not None:
            self.network.teacher.follow(self.network)

    def gradient_groups(self) -> list[list[nn.Parameter]]:
        """A mask rule descends a loss of its own."""
        if self.network.rule is None:
            return super().gradient_groups()
        own = list(self.network.rule.parameters())
        known = {id(parameter) for parameter in own}
        return [[p for p in self.parameters() if id(p) not in known], own]

    of_whole_batches = frozenset({"effective_rank"})

    @torch.no_grad()
    def monitor(self, batch: Batch, split: Split) -> dict[str, float]:
        """Numbers of what is switched on.

        Under a teacher ``effective_rank`` of the examples' features; those of a mask rule.
        """
        rule, numbers = self.network.rule, dict[str, float]()
        if self.network.teacher is not None:
            numbers["effective_rank"] = effective_rank(self.features(batch))
        if rule is None:
            return numbers
        splits = splits_of(split)
        for one in splits:
            found = rule.numbers(one, partial(self._token_losses, batch, one))
            for name, value in found.items():
                numbers[name] = numbers.get(name, 0.0) + value / len(splits)
        return numbers

    def _token_losses(self, batch: Batch, split: Split) -> list[Tensor]:
        targets = self.network.targets(batch)
        return self.network.query_token_losses(self.latents(batch, split)[1], targets, split)

    @torch.no_grad()
    def latents(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Amortised latent ``(B, 1 + S, D)``, both times: there is no refinement.

        With ``decoder.mix_blocks`` the states of all blocks side by side, ``(K + 1) D`` of them.
        """
        latent = self.network.encode(self.network.visible_tokens(batch, split))
        return latent, latent


class Untrained(MAE):
    """The encoder with its initial weights: what pretraining has to beat."""
