"""What is registered under a name, told in a line each: the first of its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping


def summary(thing: object) -> str:
    """The first line of what documents a class, a function or an object, as plain text.

    Example:
        >>> from metalearn import FirstOrder
        >>> from metamae.listing import summary
        >>> summary(FirstOrder())
        "Treats every inner gradient as a constant: dz'/dz = I (first-order MAML)."
    """
    own = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    text = inspect.getdoc(own)
    if not text:
        kind = "class" if inspect.isclass(own) else "function"
        return f"a {kind} of {own.__module__} without a docstring"
    return _plain(text.splitlines()[0])


def _plain(line: str) -> str:
    """A line of reStructuredText without its markup."""
    line = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"\1", line)
    return line.replace("``", "")


def lines(things: Mapping[str, object]) -> list[str]:
    """``NAME  SUMMARY`` of each, the summaries below each other.

    Example:
        >>> from metamae.listing import lines
        >>> lines({"summary": summary, "all": lines})[1]
        'all      NAME  SUMMARY of each, the summaries below each other.'
    """
    width = max((len(name) for name in things), default=0)
    return [f"{name:<{width}}  {summary(thing)}" for name, thing in things.items()]
