"""The tuned linear probe: an exact fit whose L2 strength is chosen on a validation cut."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from metamae.data.dataset import Array, Task
from metamae.errors import TrainingError
from metamae.holdout import hold_out
from metamae.probe import score

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
    scaler = scaler or Scaler.of(features)
    return _fit(scaler, scaler(features), labels, strength, _model(task))


def fit_tuned(
    features: Array, labels: Array, task: Task, *, groups: Array | None = None, seed: int = 0
) -> LinearProbe:
    """Choose the strength on a validation cut of the given rows, then fit all of them with it.

    Test rows have no part in it. The cut keeps groups whole (:func:`metamae.holdout.hold_out`).

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``.
        task: What to predict.
        groups: ``(N,)`` group of each row.
        seed: Seed of the cut.

    Raises:
        DataError: no rows can be held out.
        TrainingError: the solver did not converge.

    Example:
        >>> import numpy as np
        >>> from metamae.data import Task
        >>> from metamae.regularised import fit_tuned
        >>> x, y = np.linspace(-1, 1, 40)[:, None], np.repeat([0, 1], 20)
        >>> task = Task(kind="binary", metric="accuracy", classes=("low", "high"))
        >>> fit_tuned(x, y, task).predict(np.array([[-0.5], [0.5]]))
        array([0, 1])
    """
    features = features.astype(np.float64)
    fit, held = hold_out(labels, groups, classes=task.kind != "regression", seed=seed)
    scaler = Scaler.of(features[fit])
    train, validation = scaler(features[fit]), scaler(features[held])
    model, scores = _model(task), {}
    for strength in STRENGTHS:  # each starts from the solution of the stronger one before
        probe = _fit(scaler, train, labels[fit], strength, model)
        scores[strength] = score(task, labels[held], probe.model.predict(validation))
    strength = max(scores, key=lambda one: scores[one])  # the first of equals
    return fit_regularised(features, labels, task, strength)


def _model(task: Task) -> Any:
    if task.kind == "regression":
        return Ridge()
    return LogisticRegression(max_iter=5000, warm_start=True)


def _fit(scaler: Scaler, scaled: Array, labels: Array, strength: float, model: Any) -> LinearProbe:
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
