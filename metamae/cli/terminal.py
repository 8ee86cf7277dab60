"""What every command does at its edges: the console, one-line errors, exit codes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import torch
from rich.console import Console

from metalearn import MetalearnError
from metamae.errors import MetamaeError

RESUME_HINT = "stopped; add --resume to continue from the last checkpoint"


def make_console() -> Console:
    """A console on standard output: 120 columns wide where it is no terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII log must not cost the table
    return Console(width=None if sys.stdout.isatty() else 120)


def guarded(action: Callable[[], int], *, interrupted: str = RESUME_HINT) -> int:
    """Run a command: what is the user's to mend becomes one line and exit code 2.

    Args:
        action: The command; returns its exit code.
        interrupted: What to print after Ctrl-C (exit code 130).

    Example:
        >>> from metamae.cli.terminal import guarded
        >>> guarded(lambda: 0)
        0
    """
    try:
        return action()
    except (MetamaeError, MetalearnError, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as fault:
        reason = str(fault).splitlines()[0]
        print(f"error: {reason} Lower training.batch_size, or use --device cpu", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
