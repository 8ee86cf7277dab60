"""Optional libraries, imported when a reader runs."""

from __future__ import annotations

import importlib
from types import ModuleType

from metamae.errors import MissingLibraryError


def need_module(name: str) -> ModuleType:
    """Import an optional library of a reader.

    Raises:
        MissingLibraryError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingLibraryError(
            f"expected the library {name}, which this reader needs ({fault}); "
            "run: pip install 'metamae[data]'"
        ) from fault
