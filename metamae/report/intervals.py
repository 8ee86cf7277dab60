"""Intervals of means."""

from __future__ import annotations

LEVEL = 0.95
"""Of all intervals here."""


def student_margin(error: float, count: int) -> float:
    r"""Half the width of Student's 95 % interval of a mean, :math:`t_{.975, n-1}\, e`.

    Args:
        error: Standard error of the mean, :math:`e`.
        count: Number of values that it is the mean of, :math:`n \ge 2`.

    Example:
        >>> from metamae.report.intervals import student_margin
        >>> round(student_margin(0.5, 3), 3)
        2.151
    """
    from scipy.stats import t as student  # takes seconds: commands start without it

    return float(student.ppf((1 + LEVEL) / 2, count - 1)) * error
