"""The program on choices from the field: its cells, and what they come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from metamae import build_method, load_dataset
from metamae.config import override
from metamae.files import read_json
from tests import ROOT
from tests.benchmarks.loading import load_program
from tests.tiny import SIZES


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program("neighbours")


def test_every_cell_can_be_built_and_names_what_it_is_compared_with(program: ModuleType) -> None:
    cells = list(program.jobs(program.SETS[:2], [0], program.VARIANTS))
    assert len(cells) == 2 * len(program.VARIANTS)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        made = program.VARIANTS[cell.variant]
        assert cell.config.method == made.method
        small = override(cell.config, SIZES)
        build_method(small, load_dataset(cell.dataset).inputs)
        if made.beside:
            names = list(program.VARIANTS)
            assert names.index(made.beside) < names.index(cell.variant), "it comes first"
            plain = next(c for c in cells if (c.dataset, c.variant) == (cell.dataset, made.beside))
            assert cell.config != plain.config
            assert cell.config.training == plain.config.training


@pytest.mark.slow
def test_a_cell_is_run_once_and_compared(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of a small network; collected, with gradients beside the mean."""
    monkeypatch.setattr(program, "RESULTS", tmp_path / "neighbours.json")
    sizes = [*SIZES, "training.steps=2", "training.batch_size=8"]

    def cells() -> list[program.NeighbourJob]:  # type: ignore[name-defined]
        return [
            replace(cell, config=override(cell.config, sizes), numbers=(program.FEW,))
            for cell in program.jobs(["basic_motions"], [0], ["mae"])
        ]

    left = list(program.missing(cells(), tmp_path))
    assert len(left) == 1
    monkeypatch.setattr("proof.DRAWS", 2)
    monkeypatch.setattr("proof.CHOICE", (program.FEW,))
    program.run_all(left, tmp_path)
    assert list(program.missing(cells(), tmp_path)) == []
    program.collect(tmp_path)
    report = read_json(tmp_path / "neighbours.json")
    (row,) = report["rows"]
    assert {"values", "tokens", "gradients"} <= set(row)
    assert row["seconds"] > 0
    means = [100 * np.mean(row[kind]["5"]) for kind in ("gradients", "values")]
    (found,) = report["differences"]
    assert (found["variant"], found["beside"], found["seeds"]) == ("mae, gradients", "mae, mean", 1)
    assert found["mean"] == pytest.approx(means[0] - means[1])


def test_differences_are_paired_by_seed_with_what_lacks_the_choice(program: ModuleType) -> None:
    rows = [
        {
            "stage": program.STAGE,
            "dataset": "a",
            "variant": variant,
            "seed": seed,
            "values": {"5": [x, x + 0.02]},
            "pretrain_cpu_seconds": seconds * (seed + 1),
        }
        for seconds, (variant, values) in (
            (20, ("mae", (0.5, 0.6))),
            (30, ("mae, hard", (0.6, 0.65))),
            (10, ("two masks", (0.4, 0.4))),
            (10, ("two masks, quantization", (0.3, 0.5))),
        )
        for seed, x in enumerate(values)
    ]
    found = {one["variant"]: one for one in program.differences(rows)}
    assert set(found) == {"mae, hard", "two masks", "two masks, quantization"}
    assert found["mae, hard"]["mean"] == pytest.approx(7.5)
    assert found["two masks"]["mean"] == pytest.approx(-15)
    assert found["two masks, quantization"]["mean"] == pytest.approx(0)
    assert found["mae, hard"]["half"] == pytest.approx(12.7062 * 2.5, rel=1e-3)
    ratios = {"mae, hard": 1.5, "two masks": 0.5, "two masks, quantization": 1.0}
    assert program.times(rows) == pytest.approx(ratios)


def test_the_page_is_made_from_the_rows(program: ModuleType) -> None:
    """And docs/results.md has its table."""
    rows = read_json(program.RESULTS)["rows"]
    assert program.RESULTS.with_suffix(".md").read_text() == program.make_page(rows)
    assert program.make_table(rows) in (ROOT / "docs" / "results.md").read_text()
