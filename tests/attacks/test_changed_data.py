"""Data that change under a name: no run goes on with them, no row of the old ones stays unsaid."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metamae import CheckpointError, load_dataset
from metamae.cli.main import main
from metamae.data import Affine, Dataset
from metamae.data.fingerprint import fingerprint
from metamae.evaluation import describe_protocol, run_features
from metamae.experiments.cell import is_current
from metamae.experiments.plan import Cell, resolve
from metamae.report.rows import Result, read_results, write_results
from metamae.training import pretrain
from metamae.training.checkpoint import Checkpoint
from tests.attacks.running import TINY, tell
from tests.metamae.data.making import put
from tests.metamae.data.preparing.test_prepared import higgs_line
from tests.tiny import as_options

SETTINGS = as_options((*TINY, "training.steps=3"))
PRETRAIN = ["pretrain", "higgs", "--preset", "paper", "--method", "mae", *SETTINGS]


def command(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([*arguments])
    return code, out.getvalue()


def raw(data_dir: Path, shift: int) -> None:
    lines = "".join(higgs_line(i % 2, i + shift) for i in range(200))
    put(data_dir / "HIGGS.csv.gz", lines.encode())


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "data", 0)
    assert command("data", "prepare", "higgs", "--partial", "--data-dir", "data")[0] == 0
    return tmp_path / "data"


def change(data_dir: Path) -> None:
    raw(data_dir, 1)
    assert command("data", "prepare", "higgs", "--partial", "--data-dir", "data", "--again")[0] == 0


def test_a_run_does_not_go_on_with_other_data(data_dir: Path, tmp_path: Path) -> None:
    code, said = command(*PRETRAIN, "--data-dir", "data", "--out", "run")
    assert code == 0, said
    more = [*PRETRAIN, "--data-dir", "data", "--out", "run", "--resume"]
    longer = [*more, "--set", "training.steps=4"]
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    change(data_dir)
    for arguments in (more, longer):
        code, said = command(*arguments)
        assert code == 2
        assert "expected the data 'higgs' that run was trained on (fingerprint " in said
        assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    raw(data_dir, 0)
    assert command("data", "prepare", "higgs", "--partial", "--data-dir", "data", "--again")[0] == 0
    code, said = command(*longer)
    assert code == 0, said
    assert Checkpoint.load(tmp_path / "run" / "checkpoint.pt").step == 4


@pytest.mark.filterwarnings("ignore::metamae.errors.DataWarning")  # of made-up physics
def test_a_sweep_does_not_keep_the_old_rows(data_dir: Path, tmp_path: Path) -> None:
    spec: dict[str, Any] = {
        "datasets": ["higgs"],
        "methods": ["mae"],
        "seeds": 1,
        "protocols": ["knn"],
        "preset": "paper",
        "overrides": [*TINY, "training.steps=3"],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(spec))
    sweep = ["sweep", "small.yaml", "--data-dir", "data", "--out", "out"]
    code, said = command(*sweep)
    assert code == 0, said
    (row,) = read_results(tmp_path / "out" / "results.json")
    change(data_dir)
    code, said = command(*sweep)
    assert code == 2
    assert "trained on (fingerprint" in said
    # With the row alone gone, the run in its folder still knows what it was trained on.
    (tmp_path / "out" / "results.json").unlink()
    code, said = command(*sweep)
    assert code == 1
    assert "CheckpointError: expected the data 'higgs'" in said
    assert not (tmp_path / "out" / "results.json").exists()
    command(*sweep[:-1], "anew")
    (new,) = read_results(tmp_path / "anew" / "results.json")
    assert new.data != row.data
    write_results(tmp_path / "both" / "results.json", [row, replace(new, probe_seed=1)])
    code, said = command("report", "both")
    assert code == 0
    assert "warning: rows of 'higgs' come from different data" in said


def test_rows_of_data_that_are_gone_are_kept_and_said(data_dir: Path, tmp_path: Path) -> None:
    spec = {"datasets": ["higgs"], "methods": ["random"], "seeds": 1, "protocols": ["knn"]}
    text = yaml.safe_dump(spec | {"preset": "paper", "overrides": [*TINY]})
    (tmp_path / "small.yaml").write_text(text)
    sweep = ["sweep", "small.yaml", "--data-dir", "data", "--out", "out"]
    assert command(*sweep)[0] == 0
    data_dir.rename(tmp_path / "elsewhere")
    code, said = command(*sweep)
    assert code == 0
    assert "kept the rows of data that cannot be looked at: expected 'higgs' prepared" in said


def replaced(dataset: Dataset, part: str, **changes: Any) -> Dataset:
    return replace(dataset, **{part: replace(getattr(dataset, part), **changes)})


def one_value(dataset: Dataset, part: str) -> Dataset:
    values = np.array(getattr(dataset, part).arrays["signal"])
    values[-1, 0, 0] += 1
    return replaced(dataset, part, arrays={"signal": values})


def one_label(dataset: Dataset, part: str) -> Dataset:
    labels = np.array(getattr(dataset, part).labels)
    labels[-1] = 1 - labels[-1] if labels[-1] in (0, 1) else 0
    return replaced(dataset, part, labels=labels)


CHANGES: dict[str, Callable[[Dataset], Dataset]] = {
    "one value to pretrain on": lambda d: one_value(d, "pretrain"),
    "one labelled value": lambda d: one_value(d, "train"),
    "one test value": lambda d: one_value(d, "test"),
    "one label": lambda d: one_label(d, "train"),
    "one test label": lambda d: one_label(d, "test"),
    "the order of rows": lambda d: replaced(
        d, "pretrain", arrays={"signal": np.array(d.need("pretrain").arrays["signal"][::-1])}
    ),
    "a row less": lambda d: replaced(
        d, "pretrain", arrays={"signal": d.need("pretrain").arrays["signal"][:-1]}
    ),
    "the type": lambda d: replaced(
        d,
        "pretrain",
        arrays={"signal": np.asarray(d.need("pretrain").arrays["signal"][:], np.float64)},
    ),
    "the scaling": lambda d: replaced(d, "pretrain", scaling={"signal": Affine.divide(2.0)}),
    "no scaling": lambda d: replaced(d, "pretrain", scaling={}),
}


def test_every_change_of_a_data_set_is_another_fingerprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the data card stays as it was."""
    dataset, counts = load_dataset("basic_motions"), Counter[str]()
    config = resolve("basic_motions", "pocket", "mae", 0, [*TINY, "training.steps=2"])
    pretrain(config, dataset, tmp_path)
    assert Checkpoint.load(tmp_path / "checkpoint.pt").data == fingerprint(dataset)
    for name, changed in CHANGES.items():
        other = changed(dataset)
        assert fingerprint(other) != fingerprint(dataset), name
        with pytest.raises(CheckpointError, match="trained on"):
            pretrain(config, other, tmp_path, resume=True)
        counts["refused"] += 1
    pretrain(config, load_dataset("basic_motions"), tmp_path, resume=True)
    tell("changed data", counts, capsys)


def test_features_of_other_data_are_computed_anew(tmp_path: Path) -> None:
    dataset = load_dataset("basic_motions")
    config = resolve("basic_motions", "pocket", "random", 0, [*TINY])
    pretrain(config, dataset, tmp_path)
    first = run_features(tmp_path, dataset)
    other = run_features(tmp_path, one_value(dataset, "test"))
    assert torch.equal(first.test[:-1], other.test[:-1])
    assert not torch.equal(first.test[-1], other.test[-1])


def test_rows_of_earlier_revisions_have_no_fingerprint(tmp_path: Path) -> None:
    row = read_results(Path(__file__).parents[1] / "metamae/earlier/sweep/results.json")[0]
    assert isinstance(row, Result)
    assert row.data == ""


def test_a_row_probed_on_other_data_is_made_anew(tmp_path: Path) -> None:
    """Its run stays: that was trained on the same."""
    earlier = read_results(Path(__file__).parents[1] / "metamae/earlier/sweep/results.json")[0]
    config = resolve("sensors", "pocket", "mae", 0, [*TINY, f"training.steps={earlier.steps}"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    cell = Cell(config=config, variant="default", targets=("vowels",), protocols=("knn",))
    settings = describe_protocol("knn", config.probe)
    changes = {"dataset": "sensors", "transfer": "vowels", "protocol": "knn"}
    row = replace(earlier, **changes, settings=settings)
    now = {"sensors": "a", "vowels": "b"}
    current = {"": True, "a/b": True, "-/b": True, "a/c": False, "-/c": False}
    for data, expected in current.items():
        assert is_current(replace(row, data=data), cell, tmp_path, now.__getitem__) is expected
    assert is_current(replace(row, data="a/c"), cell, tmp_path, lambda name: "")
    with pytest.raises(CheckpointError, match="trained on"):
        is_current(replace(row, data="c/b"), cell, tmp_path, now.__getitem__)
