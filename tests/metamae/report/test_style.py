"""The style sheet: every figure is drawn by it, and it stays where it was put on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

from metamae.errors import DataError
from metamae.report.curves import draw_settings
from metamae.report.style import SHEET, styled
from metamae.training.bilevel import PREFIX
from tests import ROOT
from tests.test_layering import imported_names

LOCAL = {"dpi", "frameon", "layout", "labelsize"}
"""Arguments that are the sheet's to give."""


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of a function of this name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            last = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if last == name:
                yield node


def drawing_files() -> list[Path]:
    """Files that make figures; examples of metalearn alone have a look of their own."""
    files = [f for room in ("metamae", "benchmarks") for f in sorted((ROOT / room).rglob("*.py"))]
    for file in sorted((ROOT / "examples").glob("*.py")):
        top = ast.parse(file.read_text()).body
        if any(isinstance(n, ast.ImportFrom) and (n.module or "")[:7] == "metamae" for n in top):
            files.append(file)
    return [f for f in files if "matplotlib.figure" in imported_names(f)]


def faults(source: str) -> list[str]:
    """Figures made outside of the sheet, and settings that are the sheet's."""
    tree, found = ast.parse(source), []
    inside = [
        made
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(list(calls(one, "styled")) for one in function.decorator_list)
        for made in calls(function, "Figure")
    ]
    found += [f"{n.lineno}: Figure" for n in calls(tree, "Figure") if n not in inside]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword):
            number = node.arg == "fontsize" and not isinstance(node.value.value, str)  # type: ignore[attr-defined]
            found += [f"{node.lineno}: {node.arg}"] if node.arg in LOCAL or number else []
    return found


def test_every_figure_is_drawn_by_the_sheet() -> None:
    files = drawing_files()
    assert len(files) >= 13
    assert {str(f.relative_to(ROOT)): faults(f.read_text()) for f in files} == {
        str(f.relative_to(ROOT)): [] for f in files
    }


def test_the_scan_finds_faults() -> None:
    """Otherwise the test above could not fail."""
    plain = "def draw():\n    Figure(layout='tight')\n"
    assert faults(plain) == ["2: Figure", "2: layout"]
    assert faults("@styled()\ndef draw():\n    Figure().text(0, 0, '', fontsize='small')") == []
    assert faults("axis.text(0, 0, '', fontsize=8)") == ["1: fontsize"]


def test_the_callers_settings_are_left_alone(tmp_path: Path) -> None:
    """When a picture was drawn, and when drawing was refused."""
    with matplotlib.rc_context({"font.size": 3.0, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        draw_settings({"a": [{PREFIX + "step_size": [[1, 0.5], [2, 0.6]]}]}, tmp_path / "a.svg")
        assert dict(matplotlib.rcParams) == before
        with pytest.raises(DataError, match="histories of runs that learned"):
            draw_settings({}, tmp_path / "b.svg")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.svg").stat().st_size > 0


def test_the_sheet_holds_inside_but_for_what_is_changed() -> None:
    with styled({"axes.grid": False}):
        now = {name: matplotlib.rcParams[name] for name in SHEET}
    assert now.pop("axes.grid") is False
    cycle = now.pop("axes.prop_cycle")
    assert [one["color"] for one in cycle] == list(
        ast.literal_eval(SHEET["axes.prop_cycle"].removeprefix("cycler(color=").removesuffix(")"))
    )
    assert now == {name: SHEET[name] for name in now}
