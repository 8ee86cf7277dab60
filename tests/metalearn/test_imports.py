"""What `import metalearn` loads, in a fresh interpreter; and the one version of both packages."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import metalearn
import metamae
from tests import ROOT


def loaded_by(statements: str) -> set[str]:
    """Top-level packages in `sys.modules` of a fresh interpreter after some statements."""
    program = f"""
import json, sys
{statements}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_metalearn_loads_torch_and_nothing_heavier() -> None:
    """`einops` may be there one day; what plots, fits and reads data is not."""
    extra = loaded_by("import metalearn") - loaded_by("import torch")
    assert extra <= {"metalearn", "einops"}


def test_higher_is_loaded_by_the_first_optimiser_of_torch() -> None:
    before = "import torch, metalearn\n"
    assert "higher" not in loaded_by(before)
    assert "higher" in loaded_by(before + "metalearn.TorchOptimiser(torch.optim.Adam)")


def test_betty_is_not_loaded_by_importing_multilevel() -> None:
    """Levels can be described without it; a problem needs it."""
    assert "betty" not in loaded_by("import metalearn.multilevel")


def test_there_is_one_version() -> None:
    installed = importlib.metadata.version("metamae")
    assert metalearn.__version__ == metamae.__version__ == installed
