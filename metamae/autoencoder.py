"""The masked autoencoder: tokenizer, encoder of visible tokens, deep decoder, losses.

One network serves MAE and MetaMAE; the two differ in their objective only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.config import DecoderConfig, EncoderConfig
from metamae.inputs import Batch, Inputs, Tokens
from metamae.masking import Masking, Split
from metamae.tokenizer import Tokenizer, sincos_positions, xavier_linear
from metamae.transformer import Block, TransformerEncoder


class Decoder(nn.Module):
    """Maps a latent and a split to hidden states of all tokens, support first, then query.

    The latents of visible tokens and one shared mask token per masked position, all with their
    positions, pass through plain-attention blocks. Attention does not care about order, so tokens
    stay in the order [class, support, query] and nothing is shuffled back.

    Shape:
        latent ``(B, 1 + S, D)``; result ``(B, S + Q, d)`` with ``d`` the decoder's width.
    """

    positions: Tensor
    input_number: Tensor

    def __init__(self, config: DecoderConfig, inputs: Inputs, latent_width: int) -> None:
        """See the class."""
        super().__init__()
        self.embed = xavier_linear(latent_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        nn.init.normal_(self.mask_token, std=0.02)
        tables = [sincos_positions(spec.grid, config.width) for spec in inputs]
        self.register_buffer("positions", torch.cat(tables), persistent=False)
        numbers = [torch.full((spec.tokens,), n) for n, spec in enumerate(inputs)]
        self.register_buffer("input_number", torch.cat(numbers), persistent=False)
        self.type_vectors = (
            nn.Parameter(torch.empty(len(inputs), config.width)) if len(inputs) > 1 else None
        )
        if self.type_vectors is not None:
            nn.init.normal_(self.type_vectors, std=0.02)
        self.blocks = nn.Sequential(
            *(
                Block(config.width, config.heads, config.mlp_ratio, fused=False)
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, latent: Tensor, split: Split) -> Tensor:
        """Decode."""
        latent = self.embed(latent)
        places = self.positions
        if self.type_vectors is not None:
            places = places + self.type_vectors[self.input_number]
        places = places.to(latent.dtype)
        support = latent[:, 1:] + places[split.support_idx]
        query = self.mask_token.to(latent.dtype) + places[split.query_idx]
        hidden = torch.cat([latent[:, :1], support, query], dim=1)
        decoded: Tensor = self.norm(self.blocks(hidden))
        return decoded[:, 1:]


class MaskedAutoencoder(nn.Module):
    r"""Encoder, decoder and per-example losses (paper, section 2.1, Eq. 1).

    The loss of one token is the mean squared error over its values, or the cross-entropy of its
    symbol; logits are products with the tokenizer's own embedding table. Losses of an example are
    (weighted) means over its tokens, and with several inputs the mean over inputs.

    Args:
        inputs: Specifications of the inputs.
        encoder: Encoder configuration.
        decoder: Decoder configuration.
        masking: How splits are drawn; its counts cut token axes by input.
        support_mean: ``"task"`` divides an example's support loss by its own number of support
            tokens; ``"batch"`` by the mean number over the batch, as in the published method.
            They differ only through the random number of nearby tokens.

    Shape:
        ``visible_tokens`` is ``(B, S, D)``, a latent ``(B, 1 + S, D)``, both losses ``(B,)``,
        ``features`` ``(B, D)`` and ``token_features`` ``(B, L, D)``.
    """

    def __init__(
        self,
        inputs: Inputs,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        masking: Masking,
        *,
        support_mean: str = "task",
    ) -> None:
        """See the class."""
        super().__init__()
        self.inputs, self.masking, self.support_mean = inputs, masking, support_mean
        # The encoder side is built first: methods that share a seed share its initial weights.
        self.tokenizer = Tokenizer(inputs, encoder.width)
        self.encoder = TransformerEncoder(encoder)
        self.decoder = Decoder(decoder, inputs, encoder.width)
        self.heads = nn.ModuleList(
            xavier_linear(decoder.width, encoder.width if isinstance(spec, Tokens) else spec.values)
            for spec in inputs
        )

    def visible_tokens(self, batch: Batch, split: Split) -> Tensor:
        """Embedded tokens of the support."""
        return take(self.tokenizer(batch), split.support_idx)

    def encode(self, support: Tensor) -> Tensor:
        """Amortise: embedded support tokens to a latent."""
        latent: Tensor = self.encoder(support)
        return latent

    def predict(self, latent: Tensor, split: Split) -> dict[str, tuple[Tensor, Tensor]]:
        """Predictions for the support and the query tokens of every input.

        Per input ``(B, S_i, values)`` and ``(B, Q_i, values)``; logits over the vocabulary for
        symbols.
        """
        hidden = self.decoder(latent, split)
        support, query = hidden.split([split.support_idx.shape[1], split.query_idx.shape[1]], 1)
        return {
            spec.name: (self._head(number, s), self._head(number, q))
            for number, (spec, s, q) in enumerate(
                zip(
                    self.inputs,
                    support.split(self.masking.support_counts, 1),
                    query.split(self.masking.query_counts, 1),
                    strict=True,
                )
            )
        }

    def support_loss(self, latent: Tensor, targets: Mapping[str, Tensor], split: Split) -> Tensor:
        """Loss on visible and drawn nearby tokens, ``(B,)``: what refinement descends."""
        nearby = split.nearby.to(latent.dtype).split(self.masking.query_counts, 1)
        losses = []
        for (support, query), weight in zip(
            self._losses(latent, targets, split), nearby, strict=True
        ):
            total = support.sum(1) + (weight * query).sum(1)
            count = support.shape[1] + weight.sum(1)
            losses.append(total / (count.mean() if self.support_mean == "batch" else count))
        return torch.stack(losses).mean(0)

    def query_loss(self, latent: Tensor, targets: Mapping[str, Tensor], split: Split) -> Tensor:
        """Loss on masked tokens, ``(B,)``."""
        losses = [query.mean(1) for _, query in self._losses(latent, targets, split)]
        return torch.stack(losses).mean(0)

    def token_features(self, batch: Batch) -> Tensor:
        """Final token states of unmasked examples, without the class token."""
        latent: Tensor = self.encoder(self.tokenizer(batch))
        return latent[:, 1:]

    def features(self, batch: Batch) -> Tensor:
        """Mean of :meth:`token_features`: what the probe sees."""
        return self.token_features(batch).mean(dim=1)

    def _head(self, number: int, hidden: Tensor) -> Tensor:
        spec = self.inputs[number]
        output: Tensor = self.heads[number](hidden)
        if isinstance(spec, Tokens):
            output = output @ self.tokenizer.symbol_table(number).to(output.dtype).T
        return output

    def _losses(
        self, latent: Tensor, targets: Mapping[str, Tensor], split: Split
    ) -> list[tuple[Tensor, Tensor]]:
        """Per input, the losses of single tokens: ``(B, S_i)`` and ``(B, Q_i)``."""
        predictions = self.predict(latent, split)
        support_idx = split.support_idx.split(self.masking.support_counts, 1)
        query_idx = split.query_idx.split(self.masking.query_counts, 1)
        losses, offset = [], 0
        for spec, s_idx, q_idx in zip(self.inputs, support_idx, query_idx, strict=True):
            target = targets[spec.name]
            support, query = predictions[spec.name]
            losses.append(
                (
                    token_loss(support, take(target, s_idx - offset)),
                    token_loss(query, take(target, q_idx - offset)),
                )
            )
            offset += spec.tokens
        return losses


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens ``(B, L, ...)`` at ``index`` (B, N): ``(B, N, ...)``."""
    if tokens.ndim == 2:
        return tokens.gather(1, index)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def token_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Loss of every token, ``(B, N)``, in float32 at least.

    ``target`` is ``(B, N)`` indices (cross-entropy) or ``(B, N, values)`` reals (mean squared
    error over the values).

    Example:
        >>> import torch
        >>> from metamae.autoencoder import token_loss
        >>> token_loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
        tensor([[5.]])
        >>> token_loss(torch.zeros(1, 1, 2), torch.tensor([[1]]))
        tensor([[0.6931]])
    """
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    if target.ndim == 2:
        return F.cross_entropy(prediction.transpose(1, 2), target, reduction="none")
    return (prediction - target).square().mean(dim=-1)
