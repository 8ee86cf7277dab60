"""Optional libraries, imported when a reader runs."""

from __future__ import annotations

import importlib
from types import ModuleType

from metamae.errors import MissingLibraryError


def need_module(name: str, extra: str = "data") -> ModuleType:
    """Import an optional library of a reader, which the named extra of this package installs.

    Raises:
        MissingLibraryError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingLibraryError(
            f"expected the library {name}, which this reader needs ({fault}); "
            f"run: pip install 'metamae[{extra}]'"
        ) from fault
