"""BERT-style masked autoencoder: the encoder sees all tokens, a linear map predicts (DABS 2.0)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metamae.inputs import Batch, Tokens, scored
from metamae.methods.baselines.corruption import Corrupter, Corruption, zeroed
from metamae.methods.method import Method, PretextLoss
from metamae.model.autoencoder import token_loss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, select, xavier_linear


class LinearMAE(Method[Corruption]):
    r"""Masked autoencoder without a deep decoder: the paper's MAE baseline, first row of Table 4.

    Drawn contents are set to zero before positions are added, and the encoder sees all tokens.
    Real tokens are predicted by ReLU and a linear map of the encoder's outputs :math:`h`, with

    .. math:: l = \lVert W \max(h, 0) + c - x \rVert_2

    (``reconstruction`` of ``norm``, as published) or the mean squared error (``squared``); symbols
    by products of :math:`h` with their own embedding table, with cross-entropy. Losses are means
    over drawn tokens, and with several inputs the mean over inputs.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        rate: Share of masked tokens.
        reconstruction: Loss of one real token, ``norm`` or ``squared``.
    """

    mean_of_examples = True

    def __init__(
        self, network: Backbone, width: int, rate: float, *, reconstruction: str = "norm"
    ) -> None:
        """See the class."""
        super().__init__(network)
        self.corrupter = Corrupter(network.inputs, rate)
        self.reconstruction = reconstruction
        self.heads = nn.ModuleList(
            nn.Identity()
            if isinstance(spec, Tokens)
            else nn.Sequential(nn.ReLU(), xavier_linear(width, spec.values))
            for spec in network.inputs
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Corruption:
        """Masked tokens."""
        return self.corrupter.draw(batch_size, generator)

    def forward(self, batch: Batch, draw: Corruption) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(draw))
        tokenizer = self.network.tokenizer
        contents = zeroed(tokenizer.contents(batch), draw)
        latent = self.network.encoder(tokenizer.place(contents, batch))[:, 1:]
        targets = tokenizer.targets(batch)
        losses, offset = [], 0
        shares = draw.index.split(self.corrupter.counts, dim=1)
        for number, (spec, index) in enumerate(zip(self.network.inputs, shares, strict=True)):
            prediction = self._predict(number, select(latent, index))
            target = select(targets[spec.name], index - offset)
            losses.append(self._loss(scored(spec, prediction, target), target).mean())
            offset += spec.tokens
        return PretextLoss(torch.stack(losses).mean(), {})

    def _predict(self, number: int, hidden: Tensor) -> Tensor:
        output: Tensor = self.heads[number](hidden)
        if isinstance(self.network.inputs[number], Tokens):
            output = output @ self.network.tokenizer.symbol_table(number).to(output.dtype).T
        return output

    def _loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 2 or self.reconstruction == "squared":
            return token_loss(prediction, target)
        # Its derivative at an error of zero is zero, not NaN.
        norm: Tensor = torch.linalg.vector_norm(at_least_float32(prediction) - target, dim=-1)
        return norm
