"""Gradient origin networks: latents without an encoder, by one gradient step from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metalearn import LatentAdapter
from metamae.inputs import Batch, Tokens, check_batch
from metamae.methods.metamae import RefiningMAE, refine
from metamae.methods.method import PretextLoss
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.backbone import Backbone
from metamae.model.masking import Split, all_visible


class OriginAutoencoder(MaskedAutoencoder):
    r"""A masked autoencoder whose encoder is an inner step from the origin.

    Encoder and embeddings of real numbers are taken out: nothing of them would be learned, and
    nothing can be read from them. What is left starts as it does in :class:`MaskedAutoencoder`,
    but for the bias of the decoder's embedding. Every latent starts at zero, and that of the class
    token has no position, so the bias is all of it that the decoder normalises: at a bias of zero
    the derivative of a layer norm is :math:`1 / \sqrt{\epsilon}`, some 300 times what it is
    elsewhere. It starts as a random vector of a position's length instead.

    Args:
        *args: Those of :class:`MaskedAutoencoder`.
        adapter: Refines latents, the zeros.
        **options: Those of :class:`MaskedAutoencoder`.

    Shape:
        As those of :class:`MaskedAutoencoder`; examples have the sizes of ``inputs``.
    """

    def __init__(self, *args: Any, adapter: LatentAdapter, **options: Any) -> None:
        """See the class."""
        super().__init__(*args, **options)
        self.width = self.tokenizer.width
        self.adapter = adapter
        del self.encoder
        self.tokenizer.type_vectors = None
        for number, spec in enumerate(self.inputs):
            if not isinstance(spec, Tokens):  # a table of symbols is the decoder's too
                self.tokenizer.embed[number] = nn.Identity()
        nn.init.normal_(self.decoder.embed.bias, std=0.5**0.5)

    def bare(self) -> Backbone:
        """Itself: features take the decoder."""
        return self

    def visible_tokens(self, batch: Batch, split: Split) -> Tensor:
        """Zeros ``(B, S, D)``, one for every visible token."""
        size, visible = split.support_idx.shape
        return self.decoder.mask_token.new_zeros(size, visible, self.width)

    def encode(self, support: Tensor) -> Tensor:
        """The origin, zeros ``(B, 1 + S, D)``: of a class token, and of every visible one."""
        return support.new_zeros(len(support), 1 + support.shape[1], self.width)

    def support_loss(
        self,
        latent: Tensor,
        targets: Mapping[str, Tensor],
        split: Split,
        *,
        second_order: bool = True,
    ) -> Tensor:
        """Mean loss of an example's support times its visible tokens, ``(B,)``."""
        loss = super().support_loss(latent, targets, split, second_order=second_order)
        return loss * split.support_idx.shape[1]

    def token_features(self, batch: Batch) -> Tensor:
        """Latents of all tokens after the inner step, nothing masked, without the class token.

        Raises:
            InputError: examples of other sizes, for which the decoder has no places.
        """
        size = check_batch(self.inputs, batch, exact=True)
        split = all_visible(self.inputs, size).to(self.decoder.mask_token.device)
        return refine(self, self.adapter, batch, split).refined[:, 1:]


class GON(RefiningMAE):
    r"""Gradient origin network on masked tokens (Bond-Taylor and Willcocks, ICLR 2021).

    .. math::
        z'_b = -\alpha \nabla_z L_{S \cup N(S)}(z)\big|_{z = 0}, \qquad
        L = \frac{1}{B} \sum_b L_{query}(z'_b)

    MetaMAE (Eq. 2) with zeros in place of an encoder's latent, one for every visible token and one
    for the class token, and without a contrast: only the decoder is learned, and through it the
    step. The published loss is of what the step was taken on; with masks it is of the masked
    tokens, and features are the latents after a step on all tokens.

    At the origin the decoder knows nothing of an example, so where losses are squared errors or
    cross-entropies its gradient, and with one step the features, are an affine function of the
    data.

    Args:
        network: The decoder, and what refines.
    """

    network: OriginAutoencoder
    needs_gradients = True
    mean_of_examples = True

    def __init__(self, network: OriginAutoencoder) -> None:
        """See the class."""
        super().__init__(network)

    @property
    def adapter(self) -> LatentAdapter:
        """Takes the step, for training and for features."""
        return self.network.adapter

    def forward(self, batch: Batch, split: Split) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(split.support_idx))
        network = self.network
        targets, _, refined, losses = refine(network, self.adapter, batch, split)
        query = network.query_loss(refined, targets, split).mean()  # (B,) -> ()
        return PretextLoss(query, {"query": query.detach()}, losses)

    def support_losses(
        self, network: MaskedAutoencoder, batch: Batch, split: Split
    ) -> dict[str, float]:
        """Before and after the step, as means over tokens again."""
        sums = super().support_losses(network, batch, split)
        return {name: value / split.support_idx.shape[1] for name, value in sums.items()}

    def shard_units(self) -> list[nn.Module]:
        """None: refinement runs through all there is."""
        return []
