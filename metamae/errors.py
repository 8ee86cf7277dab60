"""Errors that are the user's to mend. The command line prints them in one line and exits with 2."""

import difflib
from collections.abc import Iterable


class MetamaeError(Exception):
    """Base of all errors raised by `metamae` on purpose."""


class InputError(MetamaeError, ValueError):
    """A batch or an input specification does not fit: wrong shape, dtype, range, or NaN."""


class ConfigError(MetamaeError, ValueError):
    """A configuration holds an unknown key, a wrong type or an impossible value."""


class DataError(MetamaeError, ValueError):
    """A data set is unknown, missing, damaged, or unfit for what is asked of it."""


class MissingLibraryError(DataError):
    """A reader needs an optional library that is not installed."""


class CheckpointError(MetamaeError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class TrainingError(MetamaeError, RuntimeError):
    """Training cannot go on, for instance because a loss is no longer finite."""


class LockedError(MetamaeError, RuntimeError):
    """Another process is at work on the same output folder."""


class DataWarning(UserWarning):
    """Inputs that can be trained on, but hardly as they are: constant, or absurdly scaled."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``got 'x'``, with the nearest known name when there is one."""
    matches = difflib.get_close_matches(str(name), map(str, known), n=1)
    return f"got {name!r}" + (f"; did you mean {matches[0]!r}?" if matches else "")
