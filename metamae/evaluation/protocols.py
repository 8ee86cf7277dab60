"""Evaluation protocols: how frozen features are turned into one number, each under a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from metamae.arguments import check_text
from metamae.config.sections import ProbeConfig
from metamae.errors import ConfigError, suggest
from metamae.evaluation.feature_cache import Pooling
from metamae.evaluation.features import Features, check_features
from metamae.evaluation.few_labels import describe_few_labels, probe_few_labels
from metamae.evaluation.heads import (
    describe_attentive,
    describe_batchnorm,
    probe_attentive,
    probe_batchnorm,
)
from metamae.evaluation.neighbours import describe_neighbours, probe_neighbours
from metamae.evaluation.probe import describe_probe, fit_probe
from metamae.evaluation.result import Evaluation
from metamae.evaluation.tuned import describe_tuned, probe_tuned
from metamae.progress import Reporter

FITS: Mapping[str, Callable[..., Evaluation]] = MappingProxyType(
    {
        "published": fit_probe,
        "tuned": probe_tuned,
        "knn": probe_neighbours,
        "few-N": probe_few_labels,
        "batchnorm": probe_batchnorm,
        "attentive": probe_attentive,
    }
)
"""What evaluates under each protocol."""

PROTOCOLS = ("published", "tuned", "knn", "few-1", "few-5", "few-10")
"""Protocols of a full report; ``few-N`` works for any number of labels a class."""

MORE = ("batchnorm", "attentive")
"""Protocols that run where they are named, and are not among all."""


def reads(protocol: str) -> Pooling:
    """Which features a protocol reads where none are named.

    Example:
        >>> from metamae.evaluation.protocols import reads
        >>> reads("published"), reads("attentive")
        ('mean', 'all')
    """
    return "all" if protocol == "attentive" else "mean"


def evaluate(
    protocol: str,
    features: Features,
    config: ProbeConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    title: str = "probe",
) -> Evaluation:
    """Evaluate frozen features under a protocol.

    ``published``
        The paper's linear probe: Adam, the last epoch (:func:`metamae.evaluation.probe.fit_probe`).
    ``tuned``
        An exact linear fit, its L2 strength chosen on a validation cut of the training rows
        (:func:`metamae.evaluation.tuned.fit_tuned`).
    ``knn``
        Twenty nearest neighbours (:func:`metamae.evaluation.neighbours.predict_by_neighbours`).
    ``few-N``
        N labels a class, mean and spread of ten draws
        (:func:`metamae.evaluation.few_labels.probe_few_labels`).
    ``batchnorm``
        The published probe with a batch norm in front
        (:class:`metamae.evaluation.heads.BatchNormHead`).
    ``attentive``
        The published probe on an attentive mean of all tokens, whose features it takes
        (:class:`metamae.evaluation.heads.AttentiveHead`).

    Args:
        protocol: One of these names.
        features: Features and labels.
        config: Settings of the published probe.
        seed: Seed of initial weights, orders, cuts and draws.
        reporter: Shows the published probe's epochs.
        title: Title of its bar.

    Raises:
        ConfigError: an unknown protocol.
        InputError: features and labels that do not fit each other, or are not finite.
        DataError: a protocol that does not suit the task, or labels that do not suffice.

    Example:
        >>> import numpy as np, torch
        >>> from metamae.config.sections import ProbeConfig
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.protocols import evaluate
        >>> from metamae.evaluation.features import Features
        >>> x, y = torch.linspace(-1, 1, 60)[:, None], np.repeat([0, 1], 30)
        >>> task = Task(kind="binary", metric="accuracy", classes=("low", "high"))
        >>> features = Features(task=task, train=x, train_labels=y, test=x, test_labels=y)
        >>> evaluate("tuned", features, ProbeConfig()).value
        1.0
    """
    labels = labels_of(protocol)
    if protocol in MORE:
        fit = probe_batchnorm if protocol == "batchnorm" else probe_attentive
        return fit(features, config, seed=seed, reporter=reporter, title=title)
    check_features(features)
    if labels:
        return probe_few_labels(features, labels, seed=seed)
    if protocol == "published":
        return fit_probe(features, config, seed=seed, reporter=reporter, title=title)
    return probe_tuned(features, seed=seed) if protocol == "tuned" else probe_neighbours(features)


def labels_of(protocol: str) -> int:
    """Labels a class of a few-label protocol; 0 for any other.

    Raises:
        ConfigError: an unknown protocol.

    Example:
        >>> from metamae.evaluation.protocols import labels_of
        >>> labels_of("few-5"), labels_of("tuned")
        (5, 0)
    """
    check_text(protocol, "a protocol")
    match = re.fullmatch(r"few-([1-9]\d*)", protocol)
    known = (*PROTOCOLS, *MORE)
    if match is None and protocol not in known:
        raise ConfigError(
            f"expected a protocol among {', '.join(known)} (any few-N), {suggest(protocol, known)}"
        )
    return int(match.group(1)) if match else 0


def describe_protocol(protocol: str, config: ProbeConfig) -> str:
    """The settings of a protocol in words; results with equal words are comparable.

    Example:
        >>> from metamae.config.sections import ProbeConfig
        >>> from metamae.evaluation.protocols import describe_protocol
        >>> describe_protocol("published", ProbeConfig())
        'linear, Adam 0.0001, L2 0.0001, 100 epochs, last'
    """
    labels = labels_of(protocol)
    if labels:
        return describe_few_labels(labels)
    if protocol == "published":
        return describe_probe(config)
    if protocol in MORE:
        return (describe_batchnorm if protocol == "batchnorm" else describe_attentive)(config)
    return describe_tuned() if protocol == "tuned" else describe_neighbours()
