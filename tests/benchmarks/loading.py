"""Programs of the benchmarks as modules: their folder is no package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from tests import ROOT


def load_program(name: str) -> ModuleType:
    """The program ``benchmarks/NAME.py``, and what it imports of its folder."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module
