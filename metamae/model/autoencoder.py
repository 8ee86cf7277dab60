"""The masked autoencoder: tokenizer, encoder of visible tokens, deep decoder, losses.

One network serves MAE and MetaMAE; the two differ in their objective only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.config.sections import NORMALISED_FROM, DecoderConfig, EncoderConfig, TargetConfig
from metamae.inputs import Batch, Image, Inputs, InputSpec, Signal, Tokens, scored
from metamae.model.backbone import Backbone
from metamae.model.decoder import build_decoder
from metamae.model.mask_rules.rule import MaskRule
from metamae.model.masking import Masking, Split
from metamae.model.teacher import TARGETS
from metamae.model.tokenizer import select, xavier_linear


class MaskedAutoencoder(Backbone):
    r"""Encoder, decoder and per-example losses (paper, section 2.1, Eq. 1).

    The loss of one token is the mean squared error over its values, or the cross-entropy of its
    symbol; logits are products with the tokenizer's own embedding table. Losses of an example are
    (weighted) means over its tokens.

    Several inputs form one sequence under one class token. Each keeps its own embedding, positions,
    type vector, mask ratio, neighbourhoods and head, and losses are the mean over inputs, so that
    no input counts more for having more tokens. The paper leaves this open; ``docs/media.md`` gives
    the reasons.

    Args:
        inputs: Specifications of the inputs.
        encoder: Encoder configuration.
        decoder: Decoder configuration.
        masking: How splits are drawn; its counts cut token axes by input.
        target: What is predicted of a token: its values, or states of a teacher.
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
        target: TargetConfig | None = None,
        support_mean: str = "task",
    ) -> None:
        """See the class."""
        super().__init__(inputs, encoder)
        self.masking, self.support_mean = masking, support_mean
        self.nearby_scale: Tensor | float = 1.0  # a learned nearby ratio enters here
        self.rule: MaskRule | None = None  # masks at random
        self.normalised = [decoder.normalise_targets and is_normalised(spec) for spec in inputs]
        states = 1 + encoder.depth
        self.decoder = build_decoder(decoder, inputs, encoder.width, states=states)
        self.mixes_blocks = decoder.mix_blocks
        target = target or TargetConfig()
        self.teacher = TARGETS[target.kind](target, self)
        wide = self.teacher is not None
        self.heads = nn.ModuleList(
            xavier_linear(
                decoder.width, encoder.width if wide or isinstance(spec, Tokens) else spec.values
            )
            for spec in inputs
        )

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """What is to be predicted of every token, per input.

        Values ``(B, L_i, values)``, symbols ``(B, L_i)``, or a teacher's states ``(B, L_i, D)``.
        """
        if self.teacher is None:
            return self.tokenizer.targets(batch)
        states: dict[str, Tensor] = self.teacher(batch)
        return states

    def visible_tokens(self, batch: Batch, split: Split) -> Tensor:
        """Embedded tokens of the support."""
        counts = self.masking.counts_of(split).support
        visible = split.support_idx.split(counts, 1)  # per input (B, S_i)
        embedded: Tensor = self.tokenizer(batch, visible)  # (B, S, D)
        return embedded

    def encode(self, support: Tensor) -> Tensor:
        """Amortise: embedded support tokens to a latent.

        Where the decoder mixes blocks that is the states of all of them side by side,
        ``(B, 1 + S, (1 + blocks) D)``, the encoder's output last.
        """
        if self.mixes_blocks:
            return torch.cat(self.encoder.states(support), dim=-1)
        latent: Tensor = self.encoder(support)  # (B, S, D) -> (B, 1 + S, D), class token first
        return latent

    def output_of(self, latent: Tensor) -> Tensor:
        """The encoder's output ``(B, 1 + S, D)`` in a latent: what is pooled and compared."""
        return latent[..., -self.tokenizer.width :] if self.mixes_blocks else latent

    def predict(self, latent: Tensor, split: Split) -> dict[str, tuple[Tensor, Tensor]]:
        """Predictions for the support and the query tokens of every input.

        Per input ``(B, S_i, values)`` and ``(B, Q_i, values)``; logits over the vocabulary for
        symbols.
        """
        hidden = self.decoder(latent, split, slice(1, None))  # (B, S + Q, D'), no class token
        counts = self.masking.counts_of(split)
        # Every input's (B, S_i, D'), then every input's (B, Q_i, D').
        parts = hidden.split((*counts.support, *counts.query), 1)
        number = range(len(self.inputs))
        return {
            self.inputs[n].name: (
                self._head(n, parts[n]),
                self._head(n, parts[len(self.inputs) + n]),
            )
            for n in number
        }

    def support_loss(
        self,
        latent: Tensor,
        targets: Mapping[str, Tensor],
        split: Split,
        *,
        second_order: bool = True,
    ) -> Tensor:
        """Loss on visible and drawn nearby tokens, ``(B,)``: what refinement descends.

        Differentiable twice, unless ``second_order=False`` allows a faster kernel.
        """
        places, weights, rows = self._nearby_slots(split)  # N_i slots for nearby tokens of input i
        hidden = self.decoder(latent, split, rows, second_order=second_order)  # (B, S + N, D')
        support_counts, query_counts, _ = self.masking.counts_of(split)
        parts = hidden.split((*support_counts, *(place.shape[1] for place in places)), 1)
        support_idx = split.support_idx.split(support_counts, 1)  # per input (B, S_i)
        query_idx = split.query_idx.split(query_counts, 1)  # per input (B, Q_i)
        losses = []
        for n in range(len(self.inputs)):
            slots = query_idx[n].gather(1, places[n])  # (B, N_i)
            # Together: a large vocabulary's gradients are formed half as often.
            both = torch.cat([parts[n], parts[len(self.inputs) + n]], dim=1)  # (B, S_i + N_i, D')
            index = torch.cat([support_idx[n], slots], dim=1)
            token_losses = self._token_losses(n, both, targets, index)  # (B, S_i + N_i)
            visible, nearby = token_losses.split((support_counts[n], slots.shape[1]), dim=1)
            weight = weights[n].to(nearby.dtype) * self.nearby_scale  # (B, N_i), 0 in empty slots
            total = visible.sum(1) + (weight * nearby).sum(1)  # (B,)
            count = support_counts[n] + weight.sum(1)  # (B,)
            losses.append(total / (count.mean() if self.support_mean == "batch" else count))
        return torch.stack(losses).mean(0)  # (inputs, B) -> (B,)

    def query_loss(self, latent: Tensor, targets: Mapping[str, Tensor], split: Split) -> Tensor:
        """Loss on the masked tokens, or on those that are scored, ``(B,)``; differentiable once.

        A mask rule with a loss of its own adds that loss's gradient in its weights, not its value.
        """
        losses = self.query_token_losses(latent, targets, split)
        loss = torch.stack([of_tokens.mean(1) for of_tokens in losses]).mean(0)  # (B,)
        own = None if self.rule is None else self.rule.token_loss(losses, split)
        return loss if own is None else loss + (own - own.detach())

    def query_token_losses(
        self, latent: Tensor, targets: Mapping[str, Tensor], split: Split
    ) -> list[Tensor]:
        """Losses of the masked tokens, or of those that are scored, per input ``(B, P_i)``."""
        first, index = 1 + split.support_idx.shape[1], split.query_idx
        rows: Tensor | slice = slice(first, None)
        _, counts, scored = self.masking.counts_of(split)
        if split.scored is not None:
            rows, index = split.scored + first, index.gather(1, split.scored)
            counts = scored
        hidden = self.decoder(latent, split, rows)  # (B, 1 + S, D) -> (B, P, D'), P = Q if all
        parts, query_idx = hidden.split(counts, 1), index.split(counts, 1)  # per input (B, P_i, .)
        return [
            self._token_losses(n, parts[n], targets, query_idx[n]) for n in range(len(self.inputs))
        ]

    def _head(self, number: int, hidden: Tensor) -> Tensor:
        spec = self.inputs[number]
        # As one matrix: a compiled inner step would expand the weight for every example of a part
        # of the hidden states, and sum as many gradients.
        output: Tensor = self.heads[number](hidden.reshape(-1, hidden.shape[-1]))
        output = output.view(*hidden.shape[:-1], output.shape[-1])
        if isinstance(spec, Tokens) and self.teacher is None:
            output = output @ self.tokenizer.symbol_table(number).to(output.dtype).T
        return output

    def _nearby_slots(self, split: Split) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Where the drawn nearby tokens are, in as many slots as the fullest example needs.

        Returns, per input, places among its query tokens and which slots are filled, both
        ``(B, N_i)``; and the decoder rows of the support and of all slots, ``(B, S + sum N_i)``.
        """
        query_counts = self.masking.counts_of(split).query
        slots = split.slots or self.masking.count_slots(split.nearby, query_counts)
        first = 1 + split.support_idx.shape[1]
        support = torch.arange(1, first, device=split.nearby.device)
        places, weights, rows = [], [], [support.expand(len(split.nearby), -1)]
        shares = split.nearby.split(query_counts, 1)
        for nearby, count in zip(shares, slots, strict=True):
            place = nearby.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
            places.append(place)
            weights.append(nearby.gather(1, place))
            rows.append(place + first)
            first += nearby.shape[1]
        return places, weights, torch.cat(rows, dim=1)

    def _token_losses(
        self, number: int, hidden: Tensor, targets: Mapping[str, Tensor], index: Tensor
    ) -> Tensor:
        """Losses ``(B, N)`` of the tokens of one input at joint indices ``index`` (B, N)."""
        spec, offset = self.inputs[number], sum(spec.tokens for spec in self.inputs[:number])
        target = select(targets[spec.name], index - offset)
        if self.normalised[number]:
            mean, deviation = token_statistics(target)
            target = (target - mean) / deviation
        prediction = self._head(number, hidden)
        if self.teacher is None:
            prediction = scored(spec, prediction, target)
        return token_loss(prediction, target)


def is_normalised(spec: InputSpec) -> bool:
    """Whether ``decoder.normalise_targets`` means an input: tokens of several numbers of a kind.

    Example:
        >>> from metamae.inputs import Signal, Tabular
        >>> from metamae.model.autoencoder import is_normalised
        >>> is_normalised(Signal(name="x", channels=2, length=8, token_length=2))
        True
        >>> is_normalised(Tabular(name="x", columns=8))
        False
    """
    return isinstance(spec, Signal | Image) and spec.values >= NORMALISED_FROM


def token_statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each token's values, ``(..., 1)``; a constant token is left at 0.

    Example:
        >>> import torch
        >>> from metamae.model.autoencoder import token_statistics
        >>> mean, deviation = token_statistics(torch.tensor([[0.0, 2.0]]))
        >>> mean.item(), round(deviation.item(), 3)
        (1.0, 1.414)
    """
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def token_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Loss of every token, ``(B, N)``, in float32 at least.

    ``target`` is ``(B, N)`` indices (cross-entropy) or ``(B, N, values)`` reals (mean squared
    error over the values).

    Example:
        >>> import torch
        >>> from metamae.model.autoencoder import token_loss
        >>> token_loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
        tensor([[5.]])
        >>> token_loss(torch.zeros(1, 1, 2), torch.tensor([[1]]))
        tensor([[0.6931]])
    """
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    if target.ndim == 2:
        logits = prediction.flatten(0, 1)  # classes last: much faster than in the middle
        return F.cross_entropy(logits, target.flatten(), reduction="none").view(target.shape)
    return (prediction - target).square().mean(dim=-1)
