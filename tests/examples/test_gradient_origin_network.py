"""The example trains: a short run reconstructs unseen digits better than their mean image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import ROOT


def test_a_short_run_lowers_the_test_loss_and_draws_it(tmp_path: Path) -> None:
    """Run as a user would; below the mean image means that the latent carries the digit."""
    script = ROOT / "examples" / "gradient_origin_network.py"
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script), "--steps", "100", "--out", str(tmp_path / "new" / "gon")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    number = r"(\d+\.\d+)"
    found = re.search(
        rf"test loss before {number} after {number} \(the mean image: {number}\)", done.stdout
    )
    assert found, done.stdout
    before, after, mean_image = map(float, found.groups())
    assert after < 0.75 * mean_image < before
    picture = tmp_path / "new" / "gon" / "reconstructions.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
