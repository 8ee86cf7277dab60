"""Multilevel optimisation on Betty: the only module that imports it.

Betty 0.2.1 declares Python < 3.11 yet works on later versions, so it cannot be an ordinary
dependency: :data:`INSTALL_COMMAND` installs it. Nothing else in `metalearn` needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from metalearn.errors import MissingBettyError

REQUIRED_VERSION = "0.2.1"
INSTALL_COMMAND = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def import_betty() -> ModuleType:
    """Return the `betty` package.

    Raises:
        MissingBettyError: Betty is missing, or is a version that does not work here; the message
            holds the command that installs the right one.

    Example:
        >>> from metalearn.multilevel import INSTALL_COMMAND
        >>> INSTALL_COMMAND
        'pip install --no-deps --ignore-requires-python betty-ml==0.2.1'
    """
    try:
        version = importlib.metadata.version("betty-ml")
        betty = importlib.import_module("betty")
    except importlib.metadata.PackageNotFoundError as missing:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION}, found none; run: {INSTALL_COMMAND}"
        ) from missing
    except ImportError as broken:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION} to import, it fails ({broken}); "
            f"run: {INSTALL_COMMAND}"
        ) from broken
    if version != REQUIRED_VERSION:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION}, found {version}; run: {INSTALL_COMMAND}"
        )
    return betty
