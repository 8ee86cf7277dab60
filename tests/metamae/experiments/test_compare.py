"""A whole comparison, tiny: it decides before it looks at test rows, resumes, and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from metamae import ConfigError, DataError, load_dataset
from metamae.data.dataset import Dataset
from metamae.data.own import open_data
from metamae.errors import LockedError
from metamae.evaluation.drawing import Drawing
from metamae.experiments import compare as module
from metamae.experiments import compare_plan
from metamae.experiments.compare import Compare
from metamae.experiments.compare_plan import PLAN, Piece
from metamae.experiments.compare_record import (
    DECISION,
    FIGURE,
    PAGE,
    ROWS,
    TABLE,
    remarks_of,
)
from metamae.files import read_json, write_json
from metamae.locks import locked
from metamae.progress import Reporter
from tests.tiny import SIZES

SILENT = Reporter(None)


def open_arrays(path: str) -> Dataset:
    return open_data(path).dataset


def make_table(folder: Path, *, numbers: bool = False) -> Path:
    """Forty rows of two classes, apart in the first column; or of numbers to predict."""
    folder.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), np.arange(40) % 2
    x[:, 0] += 3 * y
    np.savez(folder / "table.npz", x=x, y=x[:, 0] * 1.5 if numbers else y)
    return folder / "table.npz"


def make(folder: Path, **changes: object) -> Compare:
    settings: dict[str, object] = {
        "load": partial(open_arrays, str(make_table(folder / "data"))),
        "out": folder / "out",
        "device": torch.device("cpu"),
        "candidates": ("raw_logistic", "random", "metamae"),
        "seeds": 1,
        "draws": 2,
        "steps": 1,
        "overrides": SIZES,
        "workers": 1,
    }
    return Compare(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison; copies of its settings may go on there."""
    folder = tmp_path_factory.mktemp("compare")
    make(folder).run(SILENT)
    return folder


def test_data_are_opened_once_in_a_process(tmp_path: Path) -> None:
    opened: list[str] = []

    def load() -> Dataset:
        opened.append("again")
        return open_arrays(str(make_table(tmp_path / "data")))

    make(tmp_path, load=load).run(SILENT)
    assert len(opened) == 1
    make(tmp_path, load=load, out=tmp_path / "other").run(SILENT, load())
    assert len(opened) == 2


def test_it_leaves_rows_tables_figure_and_page(finished: Path) -> None:
    out = finished / "out"
    rows = read_json(out / ROWS)
    found = {(row["stage"], row["candidate"]) for row in rows}
    names = ("raw_logistic", "random", "metamae")
    assert found == {(stage, name) for stage in ("validation", "test") for name in names}
    assert {row["labels"] for row in rows} == {1, 2, 5, "all"}
    assert all(0 <= value <= 1 for row in rows for value in row["values"])
    assert (out / FIGURE).read_bytes().startswith(b"\x89PNG")
    page, text = (out / PAGE).read_text(), (out / TABLE).read_text()
    sentence = text.split("\n")[2]
    assert sentence.startswith(("Pretraining pays here: 5", "It does not pay here: use "))
    assert "5 labels a class with MetaMAE do what " in sentence
    assert "MetaMAE" in page
    assert "Caution: 1 steps of pretraining are few" in sentence
    decisions = read_json(out / DECISION)
    assert [decision["labels"] for decision in decisions] == [5, "all"]


def test_features_are_those_that_do_better_on_validation_cuts(finished: Path) -> None:
    pieces = finished / "out" / "pieces"
    found = {path.name for path in pieces.iterdir()}
    text = (finished / "out" / TABLE).read_text()
    for name in ("random", "metamae"):
        kinds = {"mean": f"{name}-0"}
        kinds |= {kind: f"{name}-0-{kind}" for kind in ("tokens", "joined")}
        means = {
            kind: np.mean(
                [np.mean(v) for v in read_json(pieces / f"{file}-validation.json").values()]
            )
            for kind, file in kinds.items()
        }
        chosen = max(means, key=lambda kind: means[kind])
        assert f"{kinds[chosen]}-test.json" in found
        others = {f"{file}-test.json" for kind, file in kinds.items() if kind != chosen}
        assert not others & found  # test rows were not looked at with them
        rows = read_json(finished / "out" / ROWS)
        (row,) = (
            r for r in rows if (r["stage"], r["candidate"], r["labels"]) == ("validation", name, 5)
        )
        assert row["values"] == read_json(pieces / f"{kinds[chosen]}-validation.json")["5"]
    assert "raw_logistic-0-tokens-validation.json" not in found
    assert "mean of tokens" in text or "components of all tokens" in text


def test_its_runs_are_run_folders(finished: Path) -> None:
    import metamae

    encoder = metamae.load(finished / "out" / "runs" / "metamae" / "seed-0")
    assert encoder.config.training.steps == 1
    assert encoder.config.preset == "auto"


def test_what_is_finished_is_not_done_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "out" / ROWS).read_bytes()
    monkeypatch.setattr(Piece, "run", lambda *_: pytest.fail("measured again"))
    again = make(finished).run(SILENT)
    assert (finished / "out" / ROWS).read_bytes() == before
    assert again.sentence in (finished / "out" / TABLE).read_text()


def test_a_piece_that_was_lost_comes_back_the_same(finished: Path) -> None:
    out = finished / "out"
    before = (out / ROWS).read_bytes()
    (piece,) = (out / "pieces").glob("metamae-0*-test.json")
    piece.unlink()
    half = read_json(out / "pieces" / "raw_logistic-0-validation.json")
    del half["5"]
    write_json(out / "pieces" / "raw_logistic-0-validation.json", half)
    make(finished).run(SILENT)
    assert (out / ROWS).read_bytes() == before


@pytest.mark.slow
def test_workers_change_no_number(finished: Path, tmp_path: Path) -> None:
    """In processes of their own, which open the data themselves."""
    make(tmp_path, candidates=("raw_logistic", "metamae"), workers=2).run(SILENT)
    first, second = (read_json(f / "out" / ROWS) for f in (finished, tmp_path))
    by_name = [
        {(r["stage"], r["candidate"], r["labels"]): r["values"] for r in rows}
        for rows in (first, second)
    ]
    assert by_name[1]
    assert {key: by_name[0][key] for key in by_name[1]} == by_name[1]


def test_other_settings_or_data_are_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"draws: 2 -> 3; use the same, or choose another --out"):
        make(finished, draws=3).run(SILENT)
    with pytest.raises(ConfigError, match="got changes in data: "):
        make(finished, load=partial(load_dataset, "basic_motions")).run(SILENT)


def test_test_rows_are_for_after_the_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is judged on them before the decision lies on disk."""
    seen = []

    def look(piece: Piece, reporter: Reporter) -> None:
        seen.append((piece.stage, (tmp_path / "out" / DECISION).exists()))
        original(piece, reporter)

    original = Piece.run
    monkeypatch.setattr(Piece, "run", look)
    make(tmp_path, candidates=("raw_logistic", "mae")).run(SILENT)
    # MAE is tried with all three kinds of features on validation cuts, and with one on test rows.
    assert seen == [("validation", False)] * 4 + [("test", True)] * 2


def test_labels_of_test_rows_change_no_decision(tmp_path: Path) -> None:
    """Neither what is recommended nor any value on validation cuts depends on them."""

    def spoil(dataset: Dataset) -> Dataset:
        test = dataset.need("test")
        assert test.labels is not None
        return replace(dataset, test=replace(test, labels=1 - test.labels))

    true = open_arrays(str(make_table(tmp_path / "data")))
    outs = []
    for number, dataset in enumerate((true, spoil(true))):
        out = tmp_path / str(number)
        few = ("raw_logistic", "mae")
        make(tmp_path, out=out, load=lambda d=dataset: d, candidates=few).run(SILENT)
        outs.append(out)
    first, second = (read_json(out / DECISION) for out in outs)
    assert first == second
    first, second = (read_json(out / ROWS) for out in outs)
    kept = [[r["values"] for r in rows if r["stage"] == "validation"] for rows in (first, second)]
    assert kept[0] == kept[1]
    assert [r["values"] for r in first] != [r["values"] for r in second]


def test_numbers_to_predict(tmp_path: Path) -> None:
    path = make_table(tmp_path / "numbers", numbers=True)
    few = ("raw_logistic", "raw_neighbours", "mae")
    found = make(tmp_path, load=partial(open_arrays, str(path)), candidates=few).run(SILENT)
    assert found.curves.metric == "spearman"
    assert found.curves.numbers == (5, 10, 0)
    assert "labels with MAE do what" in found.sentence
    assert found.curves.titles["raw_logistic"] == "raw + ridge"
    assert found.curves.mean("test", "raw_logistic", 0) > 0.7


def test_a_damaged_piece_or_plan_is_named(tmp_path: Path) -> None:
    compare = make(tmp_path, candidates=("raw_logistic", "mae"))
    compare.run(SILENT)
    (piece,) = (tmp_path / "out" / "pieces").glob("mae-0*-test.json")
    piece.write_text("{")
    with pytest.raises(DataError, match=r"-test.json, got a damaged file .*delete it"):
        compare.run(SILENT)
    piece.unlink()
    (tmp_path / "out" / PLAN).write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match=r"plan.json, got a damaged file"):
        compare.run(SILENT)


def test_data_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    piece = Piece(
        candidate="raw_logistic",
        seed=0,
        stage="test",
        config=None,  # type: ignore[arg-type]
        load=partial(load_dataset, "basic_motions"),
        data="0" * 16,
        draws=2,
        out=tmp_path,
        device=torch.device("cpu"),
    )
    compare_plan._kept.clear()
    with pytest.raises(DataError, match="do not change them while it runs"):
        piece.run(SILENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 1}, "expected draws >= 2, got 1"),
        ({"seeds": 0}, "expected seeds >= 1, got 0"),
        ({"steps": 0}, "expected at least 1 step of pretraining, got 0"),
        ({"minutes": 1.0}, "expected minutes or steps of pretraining, got both"),
        ({"candidates": ("forest",)}, "expected candidates among .*got 'forest'"),
        ({"workers": 0}, "expected at least 1 worker, got 0"),
    ],
)
def test_impossible_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **changes)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raw_logistic and a pretrained candidate"):
        make(tmp_path, candidates=("raw_logistic", "random")).run(SILENT)

    def unlabelled() -> Dataset:
        return open_data(np.random.default_rng(0).normal(size=(40, 4))).dataset

    with pytest.raises(DataError, match="train partition"):
        make(tmp_path, load=unlabelled).run(SILENT)
    with locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists(), "nothing half made"


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(folder: Path) -> object:
        raise LockedError(f"{folder}")

    monkeypatch.setattr(module, "locked", busy)
    with pytest.raises(LockedError):
        make(tmp_path).run(SILENT)


def test_few_groups_are_remarked_on() -> None:
    """Of seven subjects few cuts differ; of enough groups, or without any, nothing is said."""
    data = load_dataset("sensors")
    labels = np.asarray(data.need("train").labels)
    told = {
        count: " ".join(remarks_of(data, Drawing(data.need_task(), labels, groups)))
        for count, groups in (
            (0, None),
            (7, np.arange(len(labels)) % 7),
            (30, np.arange(len(labels)) % 30),
        )
    }
    assert "are of 7 groups: few validation cuts of them differ" in told[7]
    assert all("groups" not in told[count] for count in (0, 30))
