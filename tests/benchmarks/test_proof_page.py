"""The page of the proof is made from its rows, and other pages quote it."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest

from tests import ROOT
from tests.benchmarks.loading import load_program

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """The program that makes it."""
    return load_program("proof_page")


def test_the_page_is_made_from_the_rows(page: ModuleType) -> None:
    report = json.loads((RESULTS / "proof.json").read_text())
    assert (RESULTS / "proof.md").read_text() == page.make_page(report)
    values = page.read_values(report["rows"])
    sets = list(dict.fromkeys(r["dataset"] for r in report["rows"] if r["variant"] == "metamae"))
    table = page.mean_table(values, sets)
    assert table in (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text()
    assert table in results
    assert page.accuracy_table(values, sets, "5") in results
    assert page.accuracy_table(values, sets, "all") in results
    assert page.auto_table(report["rows"]) in results
    encoders = ("random", "mae", "umae", "metamae")
    gains = [page.difference(values, "sensors", e, "raw_logistic", "5").mean for e in encoders]
    assert min(gains) > 16  # README


def test_differences_are_paired_by_seed(page: ModuleType) -> None:
    rows = [
        {"stage": "fixed", "dataset": "a", "variant": v, "seed": s, "values": {"5": [x, x + 0.02]}}
        for v, xs in (("metamae", (0.5, 0.7, 0.6)), ("mae", (0.4, 0.65)), ("raw_logistic", (0.3,)))
        for s, x in enumerate(xs)
    ]
    values = page.read_values(rows)
    found = page.difference(values, "a", "metamae", "mae", "5")
    assert found.seeds == 2
    assert found.mean == pytest.approx(7.5)
    error = np.std([10, 5], ddof=1) / 2**0.5
    assert found.half == pytest.approx(12.7062 * error, rel=1e-4)  # Student's, one degree
    plain = page.difference(values, "a", "metamae", "raw_logistic", "5")
    assert plain.seeds == 3  # what has no seed stands beside each
    assert plain.mean == pytest.approx(30)
    assert page.difference(values, "a", "metamae", "umae", "5") is None
    assert page.over_sets(values, ["a", "b"], "metamae", "mae", "5") is None


def test_holm_corrects_over_the_sets(page: ModuleType) -> None:
    """The smallest p is held against a quarter of 5 %, the next against a third, and so on."""
    made = [
        page.Difference(m, 1.0, p, 3) for m, p in ((1, 0.012), (-1, 0.026), (1, 0.016), (1, 0.9))
    ]
    assert page.holm(made) == ["win", "tie", "win", "tie"]
    made[1] = page.Difference(-1, 1.0, 0.024, 3)
    assert page.holm([*made, None]) == ["win", "loss", "win", "tie", "-"]
    assert page.holm([page.Difference(1, 1.0, 0.013, 3)] * 4) == ["tie"] * 4
