"""The outcome of an evaluation: one record, from every protocol to the rows of a report."""

from __future__ import annotations

from dataclasses import dataclass, field

from metamae.data.dataset import Array


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcome of one protocol.

    Attributes:
        protocol: Its name, see :func:`metamae.evaluation.protocols.evaluate`.
        settings: Its settings in words, so that two results can be told apart.
        metric: Name of the metric.
        value: The metric on the test rows: after the last epoch, or the mean over draws of labels.
        spread: Sample deviation over draws of labels; 0 where there is a single fit.
        draws: Number of draws of labels; 1 where all labels are used.
        train_value: The metric on the rows the probe was fitted on.
        extra: Other numbers worth keeping: ``best`` and ``best_epoch`` of the published probe
            (chosen on test rows, so never to be reported alone), ``strength`` of the tuned one,
            ``with_ignored``, the metric with the label that the task ignores (padding) counted in.
        predictions: Test predictions; of draws, none. Not kept in files.
    """

    protocol: str
    settings: str
    metric: str
    value: float
    spread: float = 0.0
    draws: int = 1
    train_value: float
    extra: dict[str, float] = field(default_factory=dict)
    predictions: Array | None = field(default=None, compare=False, repr=False)
