"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set adaptation.steps=5 (repeatable)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--data-dir``."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--data-dir", type=Path, help="folder with full DABS data (not needed for embedded sets)")
