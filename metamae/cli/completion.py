"""``metamae --print-completion SHELL``: what lets a shell complete the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metamae.data.formats.libraries import need_module
from metamae.errors import MissingLibraryError

SHELLS = ("bash", "zsh", "tcsh")
"""Shells whose completion can be printed."""

PATHS = ("DATA", "RUN", "RUN_DIR", "RUNS", "FILE")
"""What stands for a path in the help of a command, beside arguments of type ``Path``."""


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add ``--print-completion``."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what completes this command in a shell ({', '.join(SHELLS)}), and exit",
    )


class _PrintCompletion(argparse.Action):
    """Prints and exits, as ``--version`` does: no command need follow."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            shtab = need_module("shtab", "completion")
        except MissingLibraryError as fault:
            print(f"error: {fault}", file=sys.stderr)
            raise SystemExit(2) from fault
        for action in _actions(parser):
            if action.type is Path or action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        raise SystemExit(0)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and of the commands below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
