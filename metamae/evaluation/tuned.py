"""The tuned linear probe: an exact fit whose L2 strength is chosen on a validation cut."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metalearn.randomness import fold
from metamae.data.dataset import Array, Task
from metamae.errors import DataError, InputError, TrainingError
from metamae.evaluation.features import Features, refuse_one_class
from metamae.evaluation.metrics import score, score_with_ignored
from metamae.evaluation.result import Evaluation

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Strengths to choose from, strongest first: an equal score is won by the stronger one."""


@dataclass(frozen=True)
class Scaler:
    """Scales features by the mean and deviation of the rows it was made from."""

    mean: Array
    scale: Array

    @classmethod
    def of(cls, features: Array) -> Scaler:
        """The scaler of some rows; a constant feature becomes zero."""
        scale = features.std(0)
        return cls(features.mean(0), np.where(scale > 1e-8, scale, np.inf))

    def __call__(self, features: Array) -> Array:
        """Scaled features."""
        scaled: Array = (features - self.mean) / self.scale
        return scaled


@dataclass(frozen=True)
class LinearProbe:
    r"""A fitted linear map on scaled features.

    Classes by multinomial logistic regression, numbers by ridge regression: the minimum of

    .. math:: \frac{1}{N} \sum_i \ell(y_i, W x_i + b) + \frac{\gamma}{2} \|W\|^2

    with cross-entropy or half the squared error. The mean makes one strength :math:`\gamma` mean
    the same for any number of rows.

    Attributes:
        scaler: Scales features.
        model: The scikit-learn model.
        strength: :math:`\gamma`.
    """

    scaler: Scaler
    model: Any
    strength: float

    def predict(self, features: Array) -> Array:
        """Labels or numbers, ``(N,)``."""
        predictions: Array = self.model.predict(self.scaler(features))
        return predictions


def fit_regularised(
    features: Array, labels: Array, task: Task, strength: float, *, scaler: Scaler | None = None
) -> LinearProbe:
    """Fit one strength.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``.
        task: What to predict.
        strength: Of the L2 term.
        scaler: Of the features; made from these rows when absent.

    Raises:
        TrainingError: the solver did not converge.
    """
    features = features.astype(np.float64)
    refuse_one_class(labels, task, "a linear fit")
    scaler = scaler or Scaler.of(features)
    return _fit(scaler, scaler(features), labels, strength, _model(task))


def fit_tuned(
    features: Array,
    labels: Array,
    task: Task,
    *,
    groups: Array | None = None,
    scaler: Scaler | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearProbe:
    """Choose the strength on a validation cut of the given rows, then fit all of them with it.

    Test rows have no part in it. The cut keeps groups whole (:func:`hold_out`).

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``.
        task: What to predict.
        groups: ``(N,)`` group of each row.
        scaler: Of the features; made from the rows that are fitted on when absent.
        strengths: To choose from, strongest first.
        seed: Seed of the cut.

    Raises:
        InputError: features and labels that do not fit each other.
        DataError: no rows can be held out, or there is one class only.
        TrainingError: the solver did not converge.

    Example:
        >>> import numpy as np
        >>> from metamae.data.dataset import Task
        >>> from metamae.evaluation.tuned import fit_tuned
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.repeat([0, 1], 20)
        >>> task = Task(kind="binary", metric="accuracy", classes=("low", "high"))
        >>> fit_tuned(x, y, task).predict(np.array([[-0.5], [0.5]]))
        array([0, 1])
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"expected features (N, D) and labels (N,), got {features.shape} and {labels.shape}"
        )
    refuse_one_class(labels, task, "the tuned probe")
    features = features.astype(np.float64)
    fit, held = hold_out(labels, groups, classes=task.kind != "regression", seed=seed)
    first = scaler or Scaler.of(features[fit])
    train, validation = first(features[fit]), first(features[held])
    model, scores = _model(task), {}
    for strength in strengths:  # each starts from the solution of the stronger one before
        probe = _fit(first, train, labels[fit], strength, model)
        scores[strength] = score(task, labels[held], probe.model.predict(validation))
    strength = max(scores, key=lambda candidate: scores[candidate])  # the first of equals
    return fit_regularised(features, labels, task, strength, scaler=scaler)


def describe_tuned() -> str:
    """The settings in words."""
    return "exact linear fit, L2 chosen on a validation cut of the training rows"


def probe_tuned(features: Features, *, seed: int = 0) -> Evaluation:
    """An exact linear fit, its L2 strength chosen on a cut of the rows (:func:`fit_tuned`).

    Token-wise tasks are fitted on all tokens but the ignored; the cut keeps sequences whole.

    Raises:
        DataError: no rows can be held out.
        TrainingError: the solver did not converge.
    """
    task = features.task
    train, labels, groups = features.train.numpy(), features.train_labels, features.groups
    test = features.test.numpy()
    if task.kind == "token_classification":  # (N, L, D) -> (N * L, D)
        length = train.shape[1]
        rows = np.arange(len(train)) if groups is None else groups
        train, labels, groups = (
            train.reshape(-1, train.shape[-1]),
            labels.ravel(),
            rows.repeat(length),
        )
        counted = np.ones(len(labels), bool) if task.ignore is None else labels != task.ignore
        train, labels, groups = train[counted], labels[counted], groups[counted]
    probe = fit_tuned(train, labels, task, groups=groups, seed=seed)
    predictions = probe.predict(test.reshape(-1, test.shape[-1])).reshape(
        features.test_labels.shape
    )
    return Evaluation(
        protocol="tuned",
        settings=describe_tuned(),
        metric=task.metric,
        value=score(task, features.test_labels, predictions),
        train_value=score(task, labels, probe.predict(train)),
        extra={"strength": probe.strength}
        | score_with_ignored(task, features.test_labels, predictions),
        predictions=predictions,
    )


def _model(task: Task) -> Any:
    from sklearn import linear_model  # takes seconds: commands start without it

    if task.kind == "regression":
        return linear_model.Ridge()
    return linear_model.LogisticRegression(max_iter=5000, warm_start=True)


def _fit(scaler: Scaler, scaled: Array, labels: Array, strength: float, model: Any) -> LinearProbe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Ridge

    rows = len(scaled)
    if isinstance(model, Ridge):
        model.set_params(alpha=strength * rows)
    else:
        model.set_params(C=1 / (strength * rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(scaled, labels)
        except ConvergenceWarning as fault:
            raise TrainingError(
                f"expected the regularised probe to converge at strength {strength:g}, it did not "
                f"({str(fault).splitlines()[0]}); look at the features, or use another protocol"
            ) from fault
    return LinearProbe(scaler, model, strength)


SHARE = 0.25
"""Share of the rows held out."""
MOST = 0.5
"""Share that may be held out where groups are large."""


def hold_out(
    labels: Array, groups: Array | None = None, *, classes: bool = True, seed: int = 0
) -> tuple[Array, Array]:
    """Indices of rows to fit on and of rows to validate on.

    Whole groups (subjects, clusters, places) are drawn in random order until a quarter of the rows
    is held out; a group without which a class would have no row to fit on is passed over, and so is
    one with which more than half of the rows would be held out, while others are enough.

    Args:
        labels: ``(N,)`` class indices, or numbers.
        groups: ``(N,)`` group of each row; rows are their own groups when absent.
        classes: Whether the labels are classes.
        seed: Seed of the order; the cut is a function of it and of the rows.

    Raises:
        DataError: nothing can be held out.

    Example:
        >>> import numpy as np
        >>> from metamae.evaluation.tuned import hold_out
        >>> fit, validation = hold_out(np.tile([0, 1], 8), np.repeat([0, 1, 2, 3], 4))
        >>> len(fit), len(validation), len(set(validation // 4))
        (12, 4, 1)
    """
    for of_rows in (labels, labels if groups is None else groups):
        if np.ndim(of_rows) != 1 or len(of_rows) != len(labels):
            raise DataError(
                f"expected a label and a group for every row, got {np.shape(labels)} and "
                f"{np.shape(of_rows)}"
            )
    names, group = np.unique(
        np.arange(len(labels)) if groups is None else groups, return_inverse=True
    )
    _, label = np.unique(labels, return_inverse=True) if classes else (None, np.zeros_like(group))
    table = np.zeros((len(names), label.max(initial=0) + 1), dtype=np.int64)
    np.add.at(table, (group, label), 1)
    left, held = table.sum(0), np.zeros(len(names), dtype=bool)
    order = np.random.default_rng(fold(seed, "validation cut")).permutation(len(names))
    rows, sizes = 0, table.sum(1)
    for most in (MOST * len(labels), len(labels)):  # large groups only where no other can be spared
        for number in order:
            if rows >= SHARE * len(labels) or (rows > 0 and most == len(labels)):
                break
            fits = not held[number] and rows + sizes[number] <= most
            if fits and ((left - table[number]) > 0).all():
                held[number], left, rows = True, left - table[number], rows + sizes[number]
    if rows == 0:
        raise DataError(
            f"expected rows to hold out for validation, got {len(labels)} rows in {len(names)} "
            "groups of which no class can spare one; use more labelled rows, or another protocol"
        )
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])
