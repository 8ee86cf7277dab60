"""The guide to comparisons: its command, its program and its rules are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from metamae.cli.main import make_parser
from metamae.evaluation import components, drawing, learners, scratch
from metamae.evaluation.candidates import CANDIDATES
from metamae.experiments.compare_record import DECISION, FIGURE, PAGE, ROWS, TABLE
from tests import ROOT
from tests.docs.running import run_program
from tests.tiny import SIZES

GUIDE = (ROOT / "docs" / "compare.md").read_text()


def test_the_command_is_one() -> None:
    (line,) = re.findall(r"```sh\n(.*?)\n```", GUIDE, flags=re.DOTALL)
    options = make_parser().parse_args(line.split()[1:])
    assert (options.dataset, options.label, options.minutes) == ("wine.csv", "cultivar", 5.0)


def test_the_program_runs(tmp_path: Path) -> None:
    """On settings as small as can be."""
    program, further = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    few = f"steps=1, seeds=1, draws=2, workers=1, overrides={SIZES!r}"
    small = program.replace("steps=300", f'{few}, candidates=("raw_logistic", "mae")')
    assert small != program
    assert "labels a class with MAE do what" in run_program(small, tmp_path)
    written = {path.name for path in (tmp_path / "comparison").iterdir()}
    assert {PAGE, TABLE, FIGURE, ROWS, DECISION} <= written
    assert all(f"`{name}`" in GUIDE for name in (PAGE, TABLE, FIGURE, ROWS, DECISION))
    assert float(run_program(further, tmp_path).strip()) > 0.5  # of four classes


def test_the_rules_are_those_of_the_code() -> None:
    assert (learners.TUNED_FROM, learners.STRENGTHS[1], learners.LEAF) == (20, 0.1, 20)
    assert (components.VARIANCE, components.MOST_COMPONENTS) == (0.9, 64)
    assert (scratch.PASSES, scratch.FEWEST_STEPS, scratch.MOST_STEPS) == (30, 60, 300)
    assert drawing.MANY == 250
    defaults = make_parser().parse_args(["compare", "x.csv"])
    assert (defaults.seeds, defaults.draws) == (2, 20)
    for name in ("raw_logistic", "raw_boosting", "raw_neighbours", "components", "random"):
        assert f"| {CANDIDATES[name].title} |" in GUIDE
