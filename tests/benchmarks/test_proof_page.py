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


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    """Accuracies of the rows, and differences."""
    return load_program("proof_values")


def test_the_page_is_made_from_the_rows(page: ModuleType) -> None:
    report = json.loads((RESULTS / "proof.json").read_text())
    assert (RESULTS / "proof.md").read_text() == page.make_page(report)
    values = page.read_values(report["rows"])
    sets = page.sets_of(values, page.SETS)
    assert len(sets) == 4
    table = page.mean_table(values, sets)
    assert table in (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text()
    assert table in results
    assert page.accuracy_table(values, sets, "5") in results
    assert page.accuracy_table(values, sets, "all") in results
    assert page.rival_table(values, sets) in results
    assert page.auto_table(report["rows"]) in results
    contrast = page.contrast_table(report["rows"], sets)
    assert contrast in results
    lines = [line.strip("| ").split(" | ") for line in contrast.splitlines()]
    by_name = {name: [float(x) for x in values] for name, *values in lines[2:]}
    with_it = by_name["MetaMAE with the contrast"]
    without = by_name["MetaMAE, published contents"]
    tabular, digits, sensors, patches = (a - b for a, b in zip(without, with_it, strict=True))
    assert 1.5 < min(sensors, patches) < max(sensors, patches) < 3.5  # two to three points
    assert -0.5 < min(tabular, digits) < max(tabular, digits) < 0.5
    assert page.contents_table(report["rows"], sets) in results


def test_what_is_said_of_the_rows(page: ModuleType, judge: ModuleType) -> None:
    """README and docs/results.md."""
    values = page.read_values(json.loads((RESULTS / "proof.json").read_text())["rows"])
    sets = page.sets_of(values, page.SETS)
    results = (ROOT / "docs" / "results.md").read_text()
    assert {len(values[s, m]) for s in sets for m in ("mae", "umae", "metamae")} == {2}
    assert "two seeds of pretraining" in results

    def over_sets(a: str, b: str, labels: str = "5") -> float:
        return float(judge.over_sets(values, sets, a, b, labels).mean)

    for name in ("random", "mae", "umae", "metamae"):
        assert 4.5 < over_sets(name, "raw_logistic") < 6.5
        assert over_sets(name, "raw_logistic", "all") > 2
    for name in ("umae", "metamae"):
        assert 0.6 < over_sets(name, "random") < 1.4  # a point
    assert 0.2 < over_sets("mae", "random") < 0.75  # half a point
    assert 0.25 < over_sets("metamae", "mae") < 0.4  # a third of one
    assert abs(over_sets("metamae", "umae")) < 0.4
    for one in ("mae", "umae", "metamae"):
        for other in ("mae", "umae", "metamae", "random"):
            assert abs(over_sets(one, other, "all")) < 1.2  # level
    for dataset in sets:
        both = (
            judge.difference(values, dataset, "metamae", "mae", "5"),
            judge.difference(values, dataset, "metamae", "umae", "5"),
        )
        assert judge.holm(both) == ["tie", "tie"]
    before = judge.over_sets(values, sets, page.BEFORE["metamae"], page.BEFORE["mae"], "5")
    assert f"MetaMAE was {before.mean:.1f} ± {before.half:.1f} points above MAE" in results
    cost = judge.over_sets(values, sets, page.BEFORE["metamae"], "with the contrast", "5")
    assert f"it costs {cost.mean:.1f} ± {cost.half:.1f} points" in results

    def on(dataset: str, a: str, b: str, labels: str = "5") -> float:
        return float(judge.difference(values, dataset, a, b, labels).mean)

    trained = ("mae", "umae", "metamae")
    assert {round(on("digits", m, "random")) for m in trained} <= {5, 6}
    assert {round(on("digits", m, "raw_logistic")) for m in trained} <= {3, 4, 5}
    assert {round(on("digits", m, "random", "all")) for m in trained} == {1}
    patches = "multispectral_spatial"
    assert all(on(patches, m, "random") < 0 for m in trained)
    assert all(on(patches, m, "raw_neighbours", "all") < 0 for m in (*trained, "random"))
    assert all(on("sensors", m, "field") < 0 for m in (*trained, "random"))
    assert all(on("tabular", m, "raw_logistic") < 0 for m in (*trained, "random"))
    assert all(on("tabular", m, "raw_logistic", "all") > 5 for m in (*trained, "random"))
    assert all(on("tabular", m, "raw_boosting", "all") < 0 for m in (*trained, "random"))
    assert all(on("tabular", "metamae", m) > 1 for m in ("mae", "umae"))
    assert abs(on("tabular", "metamae", "random")) < 1


def test_what_is_said_of_the_size_of_contents(page: ModuleType) -> None:
    """On validation cuts every trained encoder gains, on every set."""
    rows = json.loads((RESULTS / "proof.json").read_text())["rows"]
    sets = page.sets_of(page.read_values(rows), page.SETS)
    lines = [
        line.strip("| ").split(" | ")[1:] for line in page.contents_table(rows, sets).splitlines()
    ][2:-1]
    found = np.array(lines, float)  # before and now, of four encoders
    gains = found[1::2] - found[::2]
    assert (gains[1:] > 0).all()


def test_what_is_said_of_sets_that_were_kept_back(page: ModuleType, judge: ModuleType) -> None:
    values = page.read_values(json.loads((RESULTS / "proof.json").read_text())["rows"])
    kept = page.sets_of(values, page.HELD_BACK, page.BEFORE)
    assert kept == ["diamonds", "pens"]
    results = (ROOT / "docs" / "results.md").read_text()
    for labels in ("5", "all"):
        assert page.accuracy_table(values, kept, labels, page.BEFORE) in results

    def ahead(dataset: str, rival: str) -> set[int]:
        methods = [page.BEFORE[name] for name in ("mae", "umae", "metamae")]
        rival = page.BEFORE.get(rival, rival)
        found = (judge.difference(values, dataset, m, rival, "5").mean for m in methods)
        return {round(x) for x in found}

    assert ahead("pens", "raw_logistic") == {8, 9}
    assert ahead("pens", "random") <= {6, 7, 8}
    assert ahead("diamonds", "random") <= {-1, 0, 1}
    without = page.BEFORE["metamae"]
    gains = [judge.difference(values, s, "with the contrast", without, "5").mean for s in kept]
    assert [round(gain) for gain in gains] == [1, 1]
    untrained = page.BEFORE["random"]
    assert judge.difference(values, "diamonds", untrained, "raw_logistic", "5").mean > 3


def test_differences_are_paired_by_seed(judge: ModuleType) -> None:
    rows = [
        {"stage": "fixed", "dataset": "a", "variant": v, "seed": s, "values": {"5": [x, x + 0.02]}}
        for v, xs in (("metamae", (0.5, 0.7, 0.6)), ("mae", (0.4, 0.65)), ("raw_logistic", (0.3,)))
        for s, x in enumerate(xs)
    ]
    values = judge.read_values(rows)
    found = judge.difference(values, "a", "metamae", "mae", "5")
    assert found.seeds == 2
    assert found.mean == pytest.approx(7.5)
    error = np.std([10, 5], ddof=1) / 2**0.5
    assert found.half == pytest.approx(12.7062 * error, rel=1e-4)  # Student's, one degree
    plain = judge.difference(values, "a", "metamae", "raw_logistic", "5")
    assert plain.seeds == 3  # what has no seed stands beside each
    assert plain.mean == pytest.approx(30)
    assert judge.difference(values, "a", "metamae", "umae", "5") is None
    assert judge.over_sets(values, ["a", "b"], "metamae", "mae", "5") is None


def test_holm_corrects_over_the_sets(judge: ModuleType) -> None:
    """The smallest p is held against a quarter of 5 %, the next against a third, and so on."""
    made = [
        judge.Difference(m, 1.0, p, 3) for m, p in ((1, 0.012), (-1, 0.026), (1, 0.016), (1, 0.9))
    ]
    assert judge.holm(made) == ["win", "tie", "win", "tie"]
    made[1] = judge.Difference(-1, 1.0, 0.024, 3)
    assert judge.holm([*made, None]) == ["win", "loss", "win", "tie", "-"]
    assert judge.holm([judge.Difference(1, 1.0, 0.013, 3)] * 4) == ["tie"] * 4


def test_features_are_chosen_on_validation_cuts(judge: ModuleType) -> None:
    """By few labels for few, by all for all, over the seeds of one encoder; never by test rows."""
    rows = [
        {
            "stage": "fixed",
            "dataset": "a",
            "variant": "mae",
            "seed": seed,
            "values": {"1": [0.1], "5": [0.2], "all": [0.9]},
            "tokens": {"1": [0.3], "5": [0.1], "all": [0.5]},
            "joined": {"1": [0.9], "5": [0.9], "all": [0.95]},
            "validation": {
                "mean": {"5": [0.5], "all": [0.8]},
                "tokens": {"5": [0.5 + gain], "all": [0.7]},
                "joined": {"5": [0.1], "all": [0.1]},
            },
        }
        for seed, gain in enumerate((0.2, -0.1))
    ]
    assert judge.pooling(rows, "5") == "tokens"
    assert judge.pooling(rows, "all") == "values"
    values = judge.read_values(rows)["a", "mae"]
    assert values[1] == pytest.approx({"1": 30, "5": 10, "all": 90})
    del rows[1]["tokens"]  # not all of them were measured with it
    assert judge.pooling(rows, "5") == "values"
