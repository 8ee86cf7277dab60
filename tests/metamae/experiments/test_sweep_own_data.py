"""Sweeps on own data: named in the file, read from its folder, the preset auto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metamae.cli.main import main
from metamae.data.own import open_data
from metamae.errors import CheckpointError, ConfigError
from metamae.experiments import cell
from metamae.experiments.plan import Sweep
from metamae.experiments.sweep import RESULTS, SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.progress import Reporter
from metamae.report.rows import read_results
from tests.tiny import SIZES

SILENT = Reporter(None)
WINE: dict[str, Any] = {"path": "data/wine.csv", "label": "grape", "group": "barrel"}
TINY = [*SIZES, "training.steps=4", "training.batch_size=8"]


def make_table(path: Path, seed: int = 0) -> None:
    numbers = np.random.default_rng(seed).normal(size=(40, 3)).round(3)
    lines = ["sugar,acid,ash,barrel,grape"]
    lines += [f"{a},{b},{c},{i % 10},{'xyz'[i % 3]}" for i, (a, b, c) in enumerate(numbers)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write(folder: Path, datasets: Any, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "datasets": datasets,
        "methods": ["random", "mae"],
        "seeds": [0],
        "protocols": ["few-1"],
        "overrides": TINY,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def run_of(path: Path, workers: int = 1) -> SweepRun:
    return SweepRun(
        sweep=read_sweep(path),
        out=path.parent / "out",
        device=torch.device("cpu"),
        workers=workers,
        fail_fast=True,
    )


def test_a_path_is_a_data_set_of_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    path = write(tmp_path, {"bottles": WINE, "basic_motions": None})
    rows, failures = run_of(path, workers=2).run(SILENT)
    assert failures == {}
    keys = {(row.dataset, row.transfer, row.method, row.preset) for row in rows}
    assert keys == {
        *(("bottles", "bottles", method, "auto") for method in ("random", "mae")),
        *(("basic_motions", "basic_motions", method, "pocket") for method in ("random", "mae")),
    }
    assert {(row.method, row.steps) for row in rows} == {("random", 0), ("mae", 4)}
    monkeypatch.setattr(cell, "pretrain", None)  # a pretraining would fail
    assert run_of(path).run(SILENT) == (rows, {})


def test_it_is_opened_as_the_command_opens_it(tmp_path: Path) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    values = WINE | {"drop": "ash", "test_share": 0.3, "as": "table"}
    values["overrides"] = ["decoder.depth=2"]
    (first, second) = read_sweep(write(tmp_path, {"bottles": values})).cells()
    assert first.own is not None
    found = first.own.dataset()
    expected = open_data(
        tmp_path / "data" / "wine.csv",
        label="grape",
        group="barrel",
        drop=["ash"],
        test_share=0.3,
        kind="table",
    ).dataset
    assert found.name == "bottles"
    assert found.inputs == expected.inputs
    assert len(found.need("test")) == len(expected.need("test"))
    assert np.array_equal(found.need("test").labels, expected.need("test").labels)
    assert (first.config.training.steps, second.config.training.steps) == (0, 4)
    assert (second.config.decoder.depth, second.config.training.batch_size) == (2, 8)


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    path = write(tmp_path, {"bottles": WINE}, methods=["random"])
    run_of(path).run(SILENT)
    kept = (tmp_path / "out" / RESULTS).read_bytes()
    make_table(tmp_path / "data" / "wine.csv", seed=1)
    with pytest.raises(CheckpointError, match="bottles"):
        run_of(path).run(SILENT)
    assert (tmp_path / "out" / RESULTS).read_bytes() == kept


def test_the_command_says_what_was_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    path = write(tmp_path, {"bottles": WINE}, methods=["random"])
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "bottles: " in capsys.readouterr().out
    (row,) = read_results(tmp_path / "out" / RESULTS)
    assert row.dataset == "bottles"


@pytest.mark.parametrize(
    ("datasets", "changes", "expected"),
    [
        (["data/wine.csv"], {}, r"under a name, as NAME: \{path: data/wine.csv, label: COLUMN\}"),
        ({"digits": WINE}, {}, "expected another name than 'digits' for own data"),
        ({"a/b": WINE}, {}, "a name of own data fit for a folder, got 'a/b'"),
        ({"wine": WINE | {"path": 3}}, {}, "expected datasets.wine.path, a file or a folder"),
        ({"wine": WINE | {"label": 3}}, {}, "expected datasets.wine.label as a text, got 3"),
        ({"wine": WINE | {"skip_bad": 1}}, {}, "datasets.wine.skip_bad as true or false, got 1"),
        ({"wine": WINE | {"drop": {}}}, {}, "expected datasets.wine.drop as a list, got"),
        ({"wine": WINE | {"test_share": "x"}}, {}, "datasets.wine.test_share as a number, got"),
        ({"wine": WINE | {"probe": ["x"]}}, {}, "in datasets.wine, got 'probe'"),
        ({"wine": WINE}, {"overrides": SIZES}, "training.steps=N among the overrides of 'wine'"),
        ({"wine": {"path": "data/wine.csv"}}, {}, "expected datasets.wine.label, what the probes"),
        ({"wine": WINE}, {"overrides": [*TINY, "seed=3"]}, "instead of the override seed=3"),
        (
            {"wine": WINE},
            {"overrides": [*TINY, "token_size=[2]"]},
            "expected datasets.wine.token_size instead",
        ),
    ],
)
def test_what_a_sweep_file_says_of_own_data_wrongly(
    tmp_path: Path, datasets: Any, changes: dict[str, Any], expected: str
) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    with pytest.raises(ConfigError, match=expected):
        read_sweep(write(tmp_path, datasets, **changes)).cells()


def test_sweeps_of_own_data_are_equal_by_what_they_say(tmp_path: Path) -> None:
    make_table(tmp_path / "data" / "wine.csv")
    one, two = (read_sweep(write(tmp_path, {"wine": WINE | {"drop": drop}})) for drop in ("a", "b"))
    assert isinstance(one, Sweep)
    assert one != two
    assert one == read_sweep(write(tmp_path, {"wine": WINE | {"drop": ["a"]}}))
