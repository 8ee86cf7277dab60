"""Predictions of masked tokens, put beside the visible ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metamae.errors import ConfigError
from metamae.inputs import Tokens
from metamae.methods.mae import MAE
from metamae.model.autoencoder import token_statistics
from metamae.model.masking import Split
from metamae.model.tokenizer import select


def reconstruct(
    method: MAE, latent: Tensor, targets: Mapping[str, Tensor], split: Split
) -> dict[str, Tensor]:
    """All tokens of every input, predicted where masked and copied where visible, on the CPU.

    What was learned to be predicted standardised gets the true token's mean and deviation back.

    Raises:
        ConfigError: a method that predicts a teacher's states, not values.
    """
    network = method.network
    if network.teacher is not None:
        raise ConfigError(
            "expected a run that predicts values to reconstruct with, got one of "
            "target.kind=teacher, which predicts states of its encoder"
        )
    counts = network.masking.counts_of(split).query
    predictions = network.predict(latent, split)
    result, offset = {}, 0
    parts = zip(network.inputs, network.normalised, split.query_idx.split(counts, 1), strict=True)
    for spec, normalised, index in parts:
        _, query = predictions[spec.name]
        tokens = targets[spec.name].clone()
        if isinstance(spec, Tokens):
            tokens.scatter_(1, index - offset, query.argmax(-1))
        else:
            if normalised:
                mean, deviation = token_statistics(select(tokens, index - offset))
                query = query * deviation + mean
            places = (index - offset).unsqueeze(-1).expand_as(query)
            tokens.scatter_(1, places, query.to(tokens.dtype))
        result[spec.name] = tokens.cpu()
        offset += spec.tokens
    return result


def masked_tokens(method: MAE, split: Split) -> dict[str, Tensor]:
    """Per input a boolean ``(B, L_i)``: which tokens are masked."""
    specs = method.network.inputs
    masked = torch.zeros(len(split.query_idx), sum(s.tokens for s in specs), dtype=torch.bool)
    masked.scatter_(1, split.query_idx.cpu(), True)
    return dict(
        zip([s.name for s in specs], masked.split([s.tokens for s in specs], 1), strict=True)
    )
