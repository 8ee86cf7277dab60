"""The page on scale: its commands are known, its program runs, its table is the program's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from metamae.cli.main import make_parser
from metamae.experiments.executors import Executor
from tests import ROOT
from tests.docs.running import run_program

PAGE = (ROOT / "docs" / "scale.md").read_text()


def test_commands_are_parsed() -> None:
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.split("\n")
    ]
    ours = [line.partition("metamae ")[2] for line in lines if "metamae " in line]
    assert len(ours) == 4
    for line in ours:
        options = make_parser().parse_args(shlex.split(line))
        assert callable(options.run)
        if hasattr(options, "executor"):
            assert Executor.parse(options.executor).kind in ("dask", "slurm")


def test_the_program_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert run_program(program, tmp_path) == "4 1\n"


@pytest.mark.slow
def test_the_table_is_that_of_the_program(tmp_path: Path) -> None:
    program = (ROOT / "benchmarks" / "scale_plan.py").read_text()
    assert run_program(program, tmp_path) in PAGE


def test_the_rates_of_disks_are_those_of_the_rows() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "input-cpu.json").read_text())["disk"]
    assert len(rows) == 7
    least = min(rows, key=lambda row: row["cold_headroom"])
    assert least["dataset"] == "librispeech"
    assert f"at least {least['cold_headroom']} times (speech)" in PAGE
    for row in rows:
        assert disk_line(row) in PAGE.splitlines()
        assert row["around_mib"] == pytest.approx(384, rel=0.05), "what the page says"


def disk_line(row: dict[str, Any]) -> str:
    """A row of the page's table."""
    rates = [row[name] for name in ("cold_per_s", "cached_per_s", "around_per_s", "h200_per_s")]
    read = f"{row['used_mib']:g} | {row['read_mib']:g}"
    numbers = " | ".join(f"{rate:,.0f}" for rate in rates)
    return f"| `{row['dataset']}` | {row['example_bytes']:,} | {read} | {numbers} |"


def test_the_cost_of_exchanging_holds_the_committed_rows() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    rows = json.loads((ROOT / "benchmarks" / "results" / "processes-cpu.json").read_text())["rows"]
    assert len(rows) == 6
    for row in rows:
        method = {"mae": "MAE", "metamae": "MetaMAE"}[row["method"]]
        times = f"{row['joint_ms']:.0f} | {row['separate_ms']:.0f} | {row['efficiency']:.2f}"
        assert f"| {method} | {row['batch']} | {times} (" in page
        reached = row["batch"] == 512
        assert (row["efficiency"] >= 0.85) == reached
