"""The command in this process, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from metamae.cli import main as cli

Command = Callable[..., SimpleNamespace]


def in_process(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command with arguments: its exit code, and what it printed."""

    def run(*arguments: str) -> SimpleNamespace:
        try:
            code = cli.main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def refused(done: SimpleNamespace, *expected: str) -> None:
    """One line of error, with every text."""
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for text in expected:
        assert text in done.err
