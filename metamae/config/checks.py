"""Checks that all sections of a configuration share."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metamae.errors import ConfigError


def positive(value: float) -> bool:
    """Whether it is above 0 and finite."""
    return 0 < value < float("inf")


def require(condition: bool, expected: str, got: object) -> None:
    """Raise ``ConfigError`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"expected {expected}, got {got!r}")


LARGEST = 2**53
"""No setting counts further: beyond it floating point skips numbers, and torch's sizes end."""


def check_fields(section: Any, name: str) -> None:
    """Raise ``ConfigError`` for a setting of another type, infinite, or beyond all counting.

    Every section calls it first, so that what is built in Python is checked like what is read. NaN
    is left to the ranges that follow, for none of them holds it.

    Example:
        >>> from metamae.config import ContrastConfig
        >>> ContrastConfig(weight=float("inf"))
        Traceback (most recent call last):
        ...
        metamae.errors.ConfigError: expected contrast.weight to be a finite number, got inf
    """
    for key, kind in _kinds(section.__class__).items():
        _check_value(getattr(section, key), kind, f"{name}.{key}" if name else key)


@cache
def _kinds(section: type) -> dict[str, Any]:
    return get_type_hints(section)


def _check_value(value: Any, kind: Any, where: str) -> None:
    origin, choices = get_origin(kind), get_args(kind)
    if origin is tuple:
        require(isinstance(value, tuple), f"{where} to be a tuple", value)
        for item in value:
            _check_value(item, choices[0], where)
    elif origin is Literal:
        known = isinstance(value, str) and value in choices
        require(known, f"{where} among {', '.join(choices)}", value)
    elif kind is float:
        require(_is_bounded(value), f"{where} to be a finite number", value)
    elif kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, f"{where} to be a whole number", value)
        require(abs(value) <= LARGEST or where == "seed", f"{where} <= 2**53", value)
    else:
        require(isinstance(value, kind), f"{where} to be {kind.__name__}", value)


def _is_bounded(number: object) -> bool:
    real = isinstance(number, int | float) and not isinstance(number, bool)
    try:
        return real and not math.isinf(number)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        return False
