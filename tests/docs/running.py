"""A program of a page, run from outside as its reader would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import ROOT


def run_program(program: str, folder: Path) -> str:
    """What it prints; it must end well."""
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
