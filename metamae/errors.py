"""Errors that are the user's to mend. The command line prints them in one line and exits with 2."""

import difflib
import errno
import reprlib
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


class ExportError(MetamaeError, RuntimeError):
    """An encoder cannot be exported, or the exported program gives other numbers."""


class LockedError(MetamaeError, RuntimeError):
    """Another process is at work on the same output folder."""


class DataWarning(UserWarning):
    """Inputs that can be trained on, but hardly as they are: constant, or absurdly scaled."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``got 'x'``, with the nearest known name when there is one."""
    name = str(name)[:200]
    matches = difflib.get_close_matches(name, map(str, known), n=1)
    return f"got {name!r}" + (f"; did you mean {matches[0]!r}?" if matches else "")


def is_systems(fault: BaseException) -> bool:
    """Whether the system itself refused: no space, no permission, no such file.

    A place in a file that cannot be is an invalid argument to it, and damage to us.
    """
    return isinstance(fault, OSError) and fault.errno not in (None, errno.EINVAL)


def reason_of(fault: BaseException) -> str:
    r"""What another library says of a fault, in one line of bounded length.

    Example:
        >>> from metamae.errors import reason_of
        >>> reason_of(ValueError("line 1\n  of 2")), reason_of(EOFError())
        ('line 1 of 2', 'EOFError')
    """
    reason = " ".join(str(fault)[:2000].split())
    return (reason[:300] + "..." if len(reason) > 300 else reason) or type(fault).__name__


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 200, 200, 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 20


def shown(value: object) -> str:
    """``repr``, cut where a value is long or deep: values come from files.

    Example:
        >>> from metamae.errors import shown
        >>> shown(range(3)), len(shown("x" * 10**6)) < 300
        ('range(0, 3)', True)
    """
    return _SHORT.repr(value)
