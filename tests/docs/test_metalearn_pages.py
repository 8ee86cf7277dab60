"""The programs on the pages of metalearn run, and do what the pages say of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.running import run_program


def programs(page: str) -> list[str]:
    """Blocks of Python on a page of docs."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_the_adapter_in_fifteen_lines(tmp_path: Path) -> None:
    (program,) = programs("metalearn.md")
    printed = run_program(program, tmp_path)
    found = re.fullmatch(
        r"Adaptation\(tasks=32, mean support loss (\S+) -> (\S+) over 3 evaluations\)\n", printed
    )
    assert found is not None, printed
    assert float(found[2]) < float(found[1])
    assert (ROOT / "README.md").read_text().count(program) == 1  # the same on both


def test_a_weight_of_decay_is_learned(tmp_path: Path) -> None:
    pytest.importorskip("betty", reason="needs betty-ml, see docs/multilevel.md")
    (program,) = programs("multilevel.md")
    found = re.fullmatch(r"decay (\d\.\d{3})\n", run_program(program, tmp_path))
    assert found is not None
    assert 0 < float(found[1]) < 0.09  # from 0.1: three weights and 20 rows need little of it


def test_maml_and_reptile_on_a_module(tmp_path: Path) -> None:
    maml, reptile = programs("functional.md")
    assert re.fullmatch(r"query loss \d+\.\d\d\n", run_program(maml, tmp_path))
    printed = "FunctionalModule(Linear, adapts=['weight', 'bias'])\n"
    assert run_program(reptile, tmp_path) == printed
