r"""The learning rate as a function of the step: nothing to save, nothing to replay on resume."""

from __future__ import annotations

import math

from metamae.config.sections import TrainingConfig


def learning_rate(training: TrainingConfig, step: int) -> float:
    r"""Learning rate of step :math:`t` from 0 of :math:`T` steps, :math:`W` of them warm-up.

    .. math::
        \eta_t = \eta \cdot \min\Big(1, \frac{t + 1}{W}\Big) \cdot
            \begin{cases} 1 & \text{constant} \\
            \frac12 \Big(1 + \cos \pi \frac{t - W}{T - W}\Big) & \text{cosine, } t \ge W \end{cases}

    Example:
        >>> from metamae.config import TrainingConfig
        >>> from metamae.training.schedule import learning_rate
        >>> training = TrainingConfig(
        ...     learning_rate=1.0, steps=10, warmup_steps=2, schedule="cosine"
        ... )
        >>> [round(learning_rate(training, step), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warmup, rate = training.warmup_steps, training.learning_rate
    if step < warmup:
        return rate * (step + 1) / warmup
    if training.schedule == "constant":
        return rate
    done = (step - warmup) / max(1, training.steps - warmup)
    return rate * (1 + math.cos(math.pi * done)) / 2
