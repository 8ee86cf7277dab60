"""Where a result comes from: source revision, versions, hardware."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from metamae.version import __version__


@cache
def revision() -> str:
    """Git revision of the source (``-dirty`` with uncommitted changes), or the version.

    An installed package lies in no repository of its own; it reports its version.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return __version__
    try:
        name = _git(root, "rev-parse", "--short=10", "HEAD")
        return name + ("-dirty" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return __version__


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def device_name(device: torch.device) -> str:
    """Name of the hardware behind a torch device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{processor}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions that a checkpoint carries."""
    return {
        "metamae": __version__,
        "revision": revision(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
