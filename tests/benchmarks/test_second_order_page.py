"""The page on the second-order part is made from its rows, and the results quote it."""

from __future__ import annotations

import json

from tests import ROOT
from tests.benchmarks.loading import load_program

RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_made_from_the_rows() -> None:
    module = load_program("second_order")
    report = json.loads((RESULTS / "second_order.json").read_text())
    assert (RESULTS / "second_order.md").read_text() == module.make_page(report)
    page = (ROOT / "docs" / "results.md").read_text()
    assert module.short_table(report) in page
    rows = {(r["dataset"], r["step"], r["step_size"]): r for r in report["rows"]}
    assert 8.5 < 1 - rows["tabular", 0, 20.0]["taken_off"] < 9.5  # nine times as large
    assert 0.65 < rows["tabular", 1500, 20.0]["taken_off"] < 0.75  # seven tenths
