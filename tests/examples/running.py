"""Runs an example as a user would: from another folder, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import ROOT


def run_example(name: str, *flags: str, folder: Path) -> str:
    """What an example prints; it must succeed."""
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_after(text: str, pattern: str) -> list[float]:
    """All numbers on the line that matches, behind the match."""
    found = re.search(rf"{pattern}(.*)", text)
    assert found, text
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", found.group(1))]
