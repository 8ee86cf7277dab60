"""What every command does at its edges: the console, one-line errors, exit codes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import torch
from rich.console import Console

from metalearn import MetalearnError
from metamae.errors import MetamaeError
from metamae.stopping import Stopped, signal_of, stoppable
from metamae.training.memory import REMEDY, is_shortage
from metamae.training.ranks import tells

RESUME_HINT = "stopped; add --resume to continue from the last checkpoint"
NOTHING_HINT = "nothing was saved yet: the same command starts anew"


def make_console() -> Console:
    """A console on standard output: 120 columns wide where it is no terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII log must not cost the table
    return Console(width=None if sys.stdout.isatty() else 120)


def guarded(action: Callable[[], int], *, interrupted: str = RESUME_HINT) -> int:
    """Run a command: what is the user's to mend becomes one line and exit code 2.

    Args:
        action: The command; returns its exit code.
        interrupted: What to print after Ctrl-C (exit code 130) or SIGTERM (143). Where work stopped
            with something saved, that is said in place of the word "stopped".

    Example:
        >>> from metamae.cli.terminal import guarded
        >>> guarded(lambda: 0)
        0
    """
    try:
        with stoppable():
            return action()
    except (MetamaeError, MetalearnError) as fault:
        return _fail(str(fault))
    except OSError as fault:
        return _fail(
            f"expected files that can be read and written, got {fault}; look at the path, its "
            "permissions and the space left"
        )
    except torch.OutOfMemoryError as fault:
        reason = str(fault).splitlines()[0]
        return _fail(f"{reason} Lower training.batch_size, or use --device cpu")
    except (MemoryError, RuntimeError, ValueError, OverflowError) as fault:
        if not is_shortage(fault):
            raise
        reason = " ".join(str(fault).split())[:200] or "no memory left"
        return _fail(f"expected enough memory, got less ({reason}); {REMEDY}")
    except KeyboardInterrupt as stop:
        if tells():
            print(_describe_stop(stop, interrupted), file=sys.stderr)
        return 128 + signal_of(stop)


def _fail(reason: str) -> int:
    if not tells():
        return 2
    line = " ".join(reason.split()).encode("utf-8", "backslashreplace").decode()
    print(f"error: {line}", file=sys.stderr)
    return 2


def _describe_stop(stop: KeyboardInterrupt, interrupted: str) -> str:
    if not isinstance(stop, Stopped):
        return interrupted
    if stop.hint:
        return f"{stop.message or 'stopped'}; {stop.hint}"
    return (stop.message or "stopped") + interrupted.removeprefix("stopped")
