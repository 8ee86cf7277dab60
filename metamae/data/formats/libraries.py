"""Optional libraries, imported when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from metamae.errors import MissingLibraryError


def need_module(name: str, extra: str = "data") -> ModuleType:
    """Import an optional library, which the named extra of this package installs.

    Raises:
        MissingLibraryError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingLibraryError(
            f"expected the library {name}, which is needed here ({fault}); "
            f"run: pip install 'metamae[{extra}]'"
        ) from fault
