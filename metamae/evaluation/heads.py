"""Probes with more than a linear layer: a batch norm before it, or attention over tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metamae.config.sections import ProbeConfig
from metamae.errors import ConfigError, DataError, InputError
from metamae.evaluation.features import Features
from metamae.evaluation.probe import describe_probe, fit_head
from metamae.evaluation.result import Evaluation
from metamae.progress import Reporter


class BatchNormHead(nn.Module):
    r"""A batch norm without weights, then a linear layer: MAE's own linear probe (He et al. 2022).

    .. math:: y = W\, \frac{x - \mu}{\sqrt{\sigma^2 + 10^{-6}}} + b

    of the batch in training, of running averages in evaluation. Features of any scale are learned
    from at the same rate.

    Args:
        width: Of the features.
        outputs: Of the task.
    """

    def __init__(self, width: int, outputs: int) -> None:
        """See the class."""
        super().__init__()
        # A mean over all batches: features are fixed, and a moving one needs many steps to arrive.
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6, momentum=None)
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs ``(..., outputs)`` of features ``(..., D)``; all axes but the last are rows."""
        rows: Tensor = self.norm(features.flatten(0, -2))
        outputs: Tensor = self.linear(rows)
        return outputs.view(*features.shape[:-1], -1)


class AttentiveHead(nn.Module):
    r"""A mean of tokens weighted by one learned query, then a linear layer.

    .. math:: y = W \sum_l a_l x_l + b, \quad a = \mathrm{softmax}_l(u \cdot x_l / \sqrt{D})

    A projection of keys or values would add nothing: with a single head it is part of ``u`` or
    ``W``. The query starts at zero, which weighs all tokens alike, as the mean does.

    Args:
        width: Of the features.
        outputs: Of the task.
    """

    def __init__(self, width: int, outputs: int) -> None:
        """See the class."""
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs ``(B, outputs)`` of tokens ``(B, L, D)``."""
        weights = (tokens @ self.query / math.sqrt(tokens.shape[-1])).softmax(dim=1)  # (B, L)
        outputs: Tensor = self.linear((weights.unsqueeze(-1) * tokens).sum(1))
        return outputs


def describe_batchnorm(config: ProbeConfig) -> str:
    """The settings in words."""
    return describe_probe(config).replace("linear", "batch norm and linear", 1)


def describe_attentive(config: ProbeConfig) -> str:
    """The settings in words."""
    return describe_probe(config).replace("linear", "attention over tokens and linear", 1)


def probe_batchnorm(
    features: Features,
    config: ProbeConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    title: str = "probe",
) -> Evaluation:
    """A batch norm without weights before the published probe's linear layer (MAE's own probe).

    Raises:
        ConfigError: batches of one row, which have no deviation.
        InputError, DataError, TrainingError: as :func:`metamae.evaluation.probe.fit_probe`.
    """
    if config.batch_size < 2:
        raise ConfigError(
            "expected probe.batch_size >= 2 for the protocol batchnorm, got 1; use larger batches"
        )
    settings = describe_batchnorm(config)
    return fit_head(features, config, BatchNormHead, "batchnorm", settings, seed, reporter, title)


def probe_attentive(
    features: Features,
    config: ProbeConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    title: str = "probe",
) -> Evaluation:
    """Attention of one learned query over all tokens before the published probe's linear layer.

    Args:
        features: Of all tokens of examples, ``(N, L, D)``, with a label for each example.
        config: See :func:`metamae.evaluation.probe.fit_probe`.
        seed: See there.
        reporter: See there.
        title: See there.

    Raises:
        DataError: a task of tokens.
        InputError: features of another shape.
        TrainingError: the weights diverged.
    """
    if features.task.kind == "token_classification":
        raise DataError(
            "expected one label an example for the attentive probe, got a token-wise task; use "
            "the published or the tuned probe"
        )
    for name, rows in (("train", features.train), ("test", features.test)):
        if rows.ndim != 3:
            raise InputError(
                f"expected {name} features of all tokens (N, L, D) for the attentive probe, got "
                f"{tuple(rows.shape)}; compute them with pooling='all'"
            )
    settings = describe_attentive(config)
    return fit_head(
        features,
        config,
        AttentiveHead,
        "attentive",
        settings,
        seed,
        reporter,
        title,
        of_tokens=True,
    )
