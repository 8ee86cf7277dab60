"""docs/choices.md: its commands run, and its settings are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from metamae.cli import main as cli
from metamae.config import make_config
from tests import ROOT
from tests.tiny import SIZES, as_options

PAGE = (ROOT / "docs" / "choices.md").read_text()


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
    ]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "metamae"
        small = as_options(SIZES) if arguments[0] == "pretrain" else []
        assert cli.main([*arguments, *small]) == 0, line


def test_every_row_names_a_setting_and_the_methods_that_take_it() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+\.\w+=\w+)` \| ([^|]+) \|", PAGE, re.M)
    assert len(rows) >= 2
    for setting, methods in rows:
        for method in re.findall(r"`(\w+)`", methods):
            make_config("sensors", overrides=[f"method={method}", setting])
