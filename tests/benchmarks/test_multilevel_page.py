"""The guide to multilevel optimisation shows the committed study."""

from __future__ import annotations

import json
import statistics

import pytest

from tests import ROOT

ARMS = ("shared", "tuned", "learned", "learned_seconds")


@pytest.mark.parametrize("dataset", ["sensors", "digits", "tabular"])
def test_the_table_of_the_study_holds_the_committed_rows(dataset: str) -> None:
    page = (ROOT / "docs" / "multilevel.md").read_text()
    rows = json.loads((ROOT / "benchmarks" / "results" / "multilevel-study.json").read_text())
    table = [line for line in page.splitlines() if line.startswith(f"| {dataset} | ")]
    assert len(table) == 4
    for line in table:
        _, protocol, *cells = line.strip("| ").split(" | ")
        for arm, cell in zip(ARMS, cells, strict=True):
            values = [
                100 * row["values"][protocol]
                for row in rows
                if (row["dataset"], row["arm"]) == (dataset, arm)
            ]
            assert len(values) == 3
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
