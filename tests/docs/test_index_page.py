"""The quickstart runs as it stands, but for the number of steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from metamae.cli import main as cli
from tests import ROOT

PAGE = (ROOT / "docs" / "index.md").read_text().replace("steps=100", "steps=1")


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    first, second = block.strip().splitlines()
    assert cli.main(shlex.split(first)[1:]) == 0
    assert cli.main([*shlex.split(second)[1:], "--set", "probe.epochs=1"]) == 0


def test_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program, "docs/index.md", "exec"), {})  # our own text
    assert capsys.readouterr().out.splitlines()[-1] == "(10, 128)"
