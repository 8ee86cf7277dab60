"""Evaluation protocols: how frozen features are turned into one number, each under a name."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from metamae.config.sections import ProbeConfig
from metamae.data.dataset import Array
from metamae.errors import ConfigError, DataError, suggest
from metamae.evaluation.features import Features
from metamae.evaluation.few_labels import DRAWS, STRENGTH, probe_few_labels
from metamae.evaluation.neighbours import NEIGHBOURS, predict_by_neighbours
from metamae.evaluation.probe import check_probe_data, fit_probe, score, score_with_ignored
from metamae.evaluation.tuned import fit_tuned
from metamae.progress import Reporter

PROTOCOLS = ("published", "tuned", "knn", "few-1", "few-5", "few-10")
"""Protocols of a full report; ``few-N`` works for any number of labels a class."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcome of one protocol.

    Attributes:
        protocol: Its name.
        settings: Its settings in words, so that two results can be told apart.
        metric: Name of the metric.
        value: The metric on the test rows; the mean over draws of labels.
        spread: Sample deviation over draws of labels; 0 where there is a single fit.
        draws: Number of draws of labels; 1 where all labels are used.
        train_value: The metric on the rows the probe was fitted on.
        extra: Other numbers worth keeping, such as the best epoch's value or the chosen strength.
        predictions: Test predictions; of draws, none.
    """

    protocol: str
    settings: str
    metric: str
    value: float
    spread: float = 0.0
    draws: int = 1
    train_value: float
    extra: dict[str, float] = field(default_factory=dict)
    predictions: Array | None = None


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
    settings = describe_protocol(protocol, config)
    check_probe_data(
        features.train, features.train_labels, features.test, features.test_labels, features.task
    )
    if protocol == "published":
        return _published(features, config, seed, settings, reporter, title)
    simple: dict[str, Callable[[Features, int, str], Evaluation]] = {"tuned": _tuned, "knn": _knn}
    if protocol in simple:
        return simple[protocol](features, seed, settings)
    return _few_labels(features, labels_of(protocol), seed, settings)


def labels_of(protocol: str) -> int:
    """Labels a class of a few-label protocol; 0 for any other.

    Raises:
        ConfigError: an unknown protocol.

    Example:
        >>> from metamae.evaluation.protocols import labels_of
        >>> labels_of("few-5"), labels_of("tuned")
        (5, 0)
    """
    match = re.fullmatch(r"few-([1-9]\d*)", protocol)
    if match is None and protocol not in PROTOCOLS:
        raise ConfigError(
            f"expected a protocol among {', '.join(PROTOCOLS)} (any few-N), "
            f"{suggest(protocol, PROTOCOLS)}"
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
        plural = "" if labels == 1 else "s"
        return f"logistic, L2 {STRENGTH:g}, {labels} label{plural} a class, {DRAWS} draws"
    if protocol == "published":
        return (
            f"linear, Adam {config.learning_rate:g}, L2 {config.weight_decay:g}, "
            f"{config.epochs} epochs, last"
            + (", standardised features" if config.standardise else "")
        )
    if protocol == "tuned":
        return "exact linear fit, L2 chosen on a validation cut of the training rows"
    return f"{NEIGHBOURS} nearest neighbours, cosine of centred features"


def _published(
    features: Features,
    config: ProbeConfig,
    seed: int,
    settings: str,
    reporter: Reporter | None,
    title: str,
) -> Evaluation:
    result = fit_probe(
        features.train,
        features.train_labels,
        features.test,
        features.test_labels,
        features.task,
        config,
        seed=seed,
        reporter=reporter,
        title=title,
    )
    extra = {"best": result.best, "best_epoch": float(result.best_epoch)}
    if result.with_ignored is not None:
        extra["with_ignored"] = result.with_ignored
    return Evaluation(
        protocol="published",
        settings=settings,
        metric=result.metric,
        value=result.value,
        train_value=result.train_value,
        extra=extra,
        predictions=result.predictions,
    )


def _tuned(features: Features, seed: int, settings: str) -> Evaluation:
    """Token-wise tasks are fitted on all tokens but the ignored; the cut keeps sequences whole."""
    task = features.task
    train, labels, groups = features.train.numpy(), features.train_labels, features.groups
    test = features.test.numpy()
    if task.kind == "token_classification":
        length = train.shape[1]
        rows = np.arange(len(train)) if groups is None else groups
        train, labels, groups = (
            train.reshape(-1, train.shape[-1]),
            labels.ravel(),
            rows.repeat(length),
        )
        kept = np.ones(len(labels), bool) if task.ignore is None else labels != task.ignore
        train, labels, groups = train[kept], labels[kept], groups[kept]
    probe = fit_tuned(train, labels, task, groups=groups, seed=seed)
    predictions = probe.predict(test.reshape(-1, test.shape[-1])).reshape(
        features.test_labels.shape
    )
    extra = {"strength": probe.strength}
    with_ignored = score_with_ignored(task, features.test_labels, predictions)
    if with_ignored is not None:
        extra["with_ignored"] = with_ignored
    return Evaluation(
        protocol="tuned",
        settings=settings,
        metric=task.metric,
        value=score(task, features.test_labels, predictions),
        train_value=score(task, labels, probe.predict(train)),
        extra=extra,
        predictions=predictions,
    )


def _knn(features: Features, seed: int, settings: str) -> Evaluation:
    task = features.task
    if task.kind == "token_classification":
        raise DataError(
            "expected one label an example for nearest neighbours, got a token-wise task; "
            "use the published or the tuned probe"
        )
    on_test, on_train = (
        predict_by_neighbours(features.train, features.train_labels, asked, task)
        for asked in (features.test, features.train)
    )
    return Evaluation(
        protocol="knn",
        settings=settings,
        metric=task.metric,
        value=score(task, features.test_labels, on_test),
        train_value=score(task, features.train_labels, on_train),
        predictions=on_test,
    )


def _few_labels(features: Features, per_class: int, seed: int, settings: str) -> Evaluation:
    tested, trained = probe_few_labels(
        features.train.numpy(),
        features.train_labels,
        features.test.numpy(),
        features.test_labels,
        features.task,
        per_class,
        seed=seed,
    )
    return Evaluation(
        protocol=f"few-{per_class}",
        settings=settings,
        metric=features.task.metric,
        value=statistics.mean(tested),
        spread=statistics.stdev(tested),
        draws=len(tested),
        train_value=statistics.mean(trained),
    )
