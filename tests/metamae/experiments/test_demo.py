"""Experiments: rows, run folders, pictures, resuming, and how many seeds are run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.image import imread

from metamae import CheckpointError, Config, ConfigError, DataError, load_dataset
from metamae.config import COMPARED
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.probe import fit_probe
from metamae.experiments import cell, demo
from metamae.experiments.demo import TIMES, Demo
from metamae.experiments.plan import Source, Sweep
from metamae.experiments.sweep import RESULTS, SweepRun
from metamae.experiments.timing import time_steps
from metamae.progress import Reporter
from metamae.report.rows import Result, read_results, write_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.provenance import revision
from metamae.training.run_folder import CHECKPOINT, CONFIG, HISTORY, load_method
from tests.tiny import SIZES

TINY = (
    *SIZES,
    *("adaptation.step_size=0.5",),
    *("probe.epochs=3", "training.batch_size=20", "training.learning_rate=1e-3"),
    *("training.steps=4", "training.log_every=2", "training.checkpoint_every=2"),
)
SILENT = Reporter(None)


def tiny(
    out: Path,
    *overrides: str,
    names: tuple[str, ...] = ("basic_motions",),
    methods: tuple[str, ...] = COMPARED,
    **settings: Any,
) -> Demo:
    given: dict[str, Any] = {"seeds": 2, "device": torch.device("cpu"), "workers": 1}
    plan = Sweep(
        datasets={name: Source() for name in names},
        methods=methods,
        protocols=("published",),
        overrides=(*TINY, *overrides),
    )
    return Demo(sweep=plan, out=out, **(given | settings))


def rows_of(demo: Demo) -> list[Result]:
    return demo.run(SILENT)[0]


@pytest.fixture(autouse=True, scope="module")
def quickly_timed() -> Iterator[None]:
    """One round of one step is enough of timing for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "time_steps", partial(time_steps, rounds=1, steps=1))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """An experiment of all methods and two seeds: its folder and what `run` returned."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    return out, rows_of(tiny(out))


@pytest.fixture
def folder(finished: tuple[Path, list[Result]], tmp_path: Path) -> Path:
    """A copy of the finished experiment, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def values(rows: list[Result]) -> list[Result]:
    """The rows without the clock's part."""
    return [replace(row, pretrain_seconds=0.0, probe_seconds=0.0) for row in rows]


def test_the_result_file_holds_one_complete_row_a_run(finished: tuple[Path, list[Result]]) -> None:
    out, rows = finished
    plain = json.loads((out / RESULTS).read_text())
    assert len(plain) == 6
    required = {"dataset", "method", "seed", "metric", "value", "steps", "pretrain_seconds"}
    required |= {"device", "torch", "revision"}
    for row in plain:
        assert set(row) == {field.name for field in fields(Result)} - {"predictions"} >= required
    assert [(row.dataset, row.transfer, row.variant, row.method, row.seed) for row in rows] == [
        ("basic_motions", "basic_motions", "default", method, seed)
        for method in ("random", "mae", "metamae")
        for seed in (0, 1)
    ]
    assert sorted(read_results(out / RESULTS), key=str) == sorted(rows, key=str)
    for row in rows:
        assert (row.metric, row.device, row.torch) == ("accuracy", "cpu", torch.__version__)
        assert row.revision == revision()
        assert row.value * 40 == pytest.approx(round(row.value * 40))
        assert row.extra["best"] >= row.value
        assert row.steps == (0 if row.method == "random" else 4)
        assert (row.pretrain_seconds > 0) is (row.method != "random")
        assert row.probe_seconds > 0
        assert row.batch_size == 20
        assert row.protocol == "published"
        assert "3 epochs" in row.settings


def test_a_row_can_be_had_again_from_its_checkpoint(finished: tuple[Path, list[Result]]) -> None:
    """The reported value is that of the saved weights under the saved configuration."""
    out, rows = finished
    data = load_dataset("basic_motions")
    for row in rows:
        run = out / "basic_motions" / "default" / row.method / f"seed-{row.seed}"
        config = Config.from_dict(yaml.safe_load((run / CONFIG).read_text()))
        assert (config.method, config.seed, config.training.steps) == (
            row.method,
            row.seed,
            row.steps,
        )
        assert Checkpoint.load(run / CHECKPOINT).config == config
        method = load_method(run / CHECKPOINT, data.inputs)
        features = Features.of(data, *compute_features(method, data))
        result = fit_probe(features, config.probe, seed=row.seed)
        assert (result.value, result.extra, result.train_value) == (
            row.value,
            row.extra,
            row.train_value,
        )


def test_the_folder_holds_histories_and_pictures(finished: tuple[Path, list[Result]]) -> None:
    out, _ = finished
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["basic_motions", RESULTS, TIMES, "curves.png", "reconstructions.png"]
    )
    for name in ("curves", "reconstructions"):
        image = imread(out / f"{name}.png")
        assert min(image.shape[:2]) > 100
        assert image[..., :3].std() > 0.02
    for method, steps in (("random", []), ("mae", [1, 3, 4]), ("metamae", [1, 3, 4])):
        text = (out / "basic_motions" / "default" / method / "seed-1" / HISTORY).read_text()
        assert [step for step, _ in json.loads(text).get("query", [])] == steps


def test_methods_of_a_seed_begin_with_the_same_weights_and_batches(
    finished: tuple[Path, list[Result]],
) -> None:
    """So their comparison is paired: MAE's first loss is the query loss at a step size of 0."""
    out, _ = finished
    first = {}
    for method in ("mae", "metamae"):
        text = (out / "basic_motions" / "default" / method / "seed-0" / HISTORY).read_text()
        first[method] = json.loads(text)["query"][0][1]
    assert first["mae"] == pytest.approx(first["metamae"], rel=0.01)
    assert first["mae"] != first["metamae"]


def refuse_training(*_: Any, **__: Any) -> Any:
    raise AssertionError("a finished run was trained again")


def test_resuming_keeps_finished_rows(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training or probing anything again; pictures are redrawn."""
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    monkeypatch.setattr(cell, "probe_row", refuse_training)
    (folder / "curves.png").unlink()
    rows = rows_of(tiny(folder))
    assert rows == finished[1]
    assert (folder / "curves.png").stat().st_size > 0


def test_resuming_runs_only_what_is_missing(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an interrupted run the rest, from its checkpoint; the result is that of one go."""
    trained: list[tuple[str, int]] = []
    pretrain = cell.pretrain

    def recording(config: Config, *arguments: Any, **settings: Any) -> Any:
        trained.append((config.method, config.seed))
        return pretrain(config, *arguments, **settings)

    monkeypatch.setattr(cell, "pretrain", recording)
    rows = [row for row in read_results(folder / RESULTS) if (row.method, row.seed) != ("mae", 1)]
    write_results(folder / RESULTS, rows)
    shutil.rmtree(folder / "basic_motions" / "default" / "mae" / "seed-1")
    assert values(rows_of(tiny(folder))) == values(finished[1])
    assert trained == [("mae", 1)]


def test_an_interrupted_experiment_can_be_resumed(
    tmp_path: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are on disk as soon as they are there."""
    calls: list[str] = []
    fit = cell.probe_row

    def interrupting(*arguments: Any, **settings: Any) -> Any:
        calls.append("")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*arguments, **settings)

    monkeypatch.setattr(cell, "probe_row", interrupting)
    with pytest.raises(KeyboardInterrupt):
        rows_of(tiny(tmp_path, seeds=1))
    assert [row.method for row in read_results(tmp_path / RESULTS)] == ["random", "mae"]
    rows = rows_of(tiny(tmp_path, seeds=1))
    assert values(rows) == values([row for row in finished[1] if row.seed == 0])
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps=5", r"a run of 5 steps, its result was made after 4"),
        ("contrast.weight=0.3", r"got changes in contrast.weight: 0.1 -> 0.3"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    folder: Path, override: str, expected: str
) -> None:
    before = (folder / RESULTS).read_bytes()
    with pytest.raises(CheckpointError, match=expected):
        rows_of(tiny(folder, override))
    assert (folder / RESULTS).read_bytes() == before


def test_another_probe_is_fitted_anew(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    rows = rows_of(tiny(folder, "probe.epochs=4"))
    assert len(rows) == len(finished[1])
    assert all("4 epochs" in row.settings for row in rows)


def test_a_run_without_its_configuration_is_probed_again(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has it."""
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    (folder / "basic_motions" / "default" / "mae" / "seed-0" / CONFIG).unlink()
    assert values(rows_of(tiny(folder))) == values(finished[1])


def test_runs_of_an_earlier_version_are_found(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lay in DATASET/METHOD/seed-N."""
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    for run in (folder / "basic_motions" / "default").iterdir():
        run.rename(folder / "basic_motions" / run.name)
    assert rows_of(tiny(folder)) == finished[1]


def test_resuming_after_a_resume_with_more_steps(folder: Path) -> None:
    """An unfinished run may be given more steps, and its row then counts as made with these."""
    settings = {"methods": ("mae",), "seeds": 1}
    (folder / RESULTS).unlink()
    (row,) = rows_of(tiny(folder, "training.steps=6", **settings))
    assert row.steps == 6
    assert rows_of(tiny(folder, "training.steps=6", **settings)) == [row]
    with pytest.raises(CheckpointError):
        rows_of(tiny(folder, **settings))


def test_a_seed_may_have_been_resumed_with_more_steps_and_another_not(folder: Path) -> None:
    """Their histories were logged at different steps; the curves are drawn all the same."""
    (folder / RESULTS).unlink()
    shutil.rmtree(folder / "basic_motions" / "default" / "mae" / "seed-1")
    rows = rows_of(tiny(folder, "training.steps=7", methods=("mae",)))
    assert [row.steps for row in rows] == [7, 7]


def test_a_folder_may_hold_results_of_other_data_sets(folder: Path) -> None:
    """They are kept in the file, and returned too or not, but are no reason to fail."""
    rows = rows_of(tiny(folder, names=("vowels",), seeds=1, methods=("random",)))
    assert ("vowels", "random", 0) in [(row.dataset, row.method, row.seed) for row in rows]
    assert len(read_results(folder / RESULTS)) == 7


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_damaged_history_is_a_clear_error(folder: Path, content: str | None) -> None:
    history = folder / "basic_motions" / "default" / "mae" / "seed-0" / HISTORY
    history.unlink() if content is None else history.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        rows_of(tiny(folder))
    assert str(history) in str(caught.value)


def test_several_data_sets_have_folders_and_pictures_of_their_own(tmp_path: Path) -> None:
    names = ("vowels", "basic_motions")
    rows = rows_of(tiny(tmp_path, "training.steps=1", names=names, seeds=1, methods=("mae",)))
    assert [row.dataset for row in rows] == list(names)
    assert not (tmp_path / "curves.png").exists()
    for name in names:
        assert (tmp_path / name / "curves.png").stat().st_size > 0
        assert (tmp_path / name / "reconstructions.png").stat().st_size > 0
        assert (tmp_path / name / "default" / "mae" / "seed-0" / CHECKPOINT).is_file()


@pytest.mark.parametrize(
    ("methods", "overrides"), [(("random",), ()), (("mae", "metamae"), ("training.steps=0",))]
)
def test_nothing_trained_nothing_drawn(
    tmp_path: Path, methods: tuple[str, ...], overrides: tuple[str, ...]
) -> None:
    rows = rows_of(tiny(tmp_path, *overrides, seeds=1, methods=methods))
    assert [row.method for row in rows] == list(methods)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("milliseconds", "names", "workers", "expected"),
    [
        (1.0, 1, 1, 3),  # never more than max_seeds
        (19_990.0, 1, 1, 3),  # 3 * 4 steps * 19.99 s <= 240 s
        (20_010.0, 1, 1, 2),
        (30_010.0, 1, 1, 1),
        (1e6, 1, 1, 1),  # one seed always
        (14_990.0, 2, 1, 2),  # 120 seconds for each of two data sets
        (15_010.0, 2, 1, 1),
        (19_990.0, 1, 2, 3),  # two at once
        (30_010.0, 1, 2, 3),
        (40_010.0, 1, 2, 2),
    ],
)
def test_as_many_seeds_as_fit_the_budget(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: float,
    names: int,
    workers: int,
    expected: int,
) -> None:
    """By the time of a step, measured once: a resumed demo has as many."""
    monkeypatch.setattr(
        demo,
        "time_steps",
        lambda *_, **__: {"mae": milliseconds / 4, "metamae": 0.75 * milliseconds},
    )
    ran: list[Sweep] = []

    def note(self: SweepRun, reporter: Reporter) -> tuple[list[Result], dict[str, str]]:
        ran.append(self.sweep)
        return [], {}

    monkeypatch.setattr(SweepRun, "run", note)
    chosen = ("basic_motions", "vowels")[:names]
    for _ in range(2):
        tiny(tmp_path, names=chosen, seeds=None, workers=workers).run(SILENT)
        monkeypatch.setattr(demo, "time_steps", refuse_training)
    assert len(ran) == 2
    for sweep in ran:
        assert sweep.seeds == tuple(range(expected))
        assert tuple(sweep.datasets) == chosen


def test_times_are_measured_once_and_kept(finished: tuple[Path, list[Result]]) -> None:
    times = json.loads((finished[0] / TIMES).read_text())
    assert times.keys() == {"basic_motions"}
    assert times["basic_motions"].keys() == {"mae", "metamae"}
    assert all(value > 0 for value in times["basic_motions"].values())


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"a": {"mae": "x"}}'])
def test_damaged_times_are_a_clear_error(folder: Path, content: str) -> None:
    (folder / TIMES).write_text(content)
    with pytest.raises(DataError, match=r"damaged file .*; delete it"):
        tiny(folder).run(SILENT)


@pytest.mark.slow
def test_workers_make_the_same_rows(tmp_path: Path, finished: tuple[Path, list[Result]]) -> None:
    """Two processes of one thread each, as one after the other."""
    rows = rows_of(tiny(tmp_path, workers=2))
    assert values(rows) == values(finished[1])


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds_are_refused(tmp_path: Path, seeds: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1 seed, got {seeds}"):
        tiny(tmp_path, seeds=seeds)


@pytest.mark.parametrize("methods", [(), ("mea",), ("mae", "caprice")])
def test_unknown_methods_are_refused(tmp_path: Path, methods: tuple[str, ...]) -> None:
    expected = (
        "expected a method among random, emix, .*, got"
        if methods
        else "one or more methods in a sweep, got none"
    )
    with pytest.raises(ConfigError, match=expected):
        tiny(tmp_path, methods=methods)
