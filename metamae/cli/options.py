"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and where to read more."""
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
        print(f"error: {line}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


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
