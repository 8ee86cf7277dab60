"""Experiments: rows, run folders, pictures, resuming, and how many seeds are run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.image import imread

from metamae import CheckpointError, Config, ConfigError, load_dataset
from metamae.config import COMPARED
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.probe import fit_probe
from metamae.evaluation.protocols import describe_protocol
from metamae.experiments import cell, sweep
from metamae.experiments.demo import RESULTS, Demo
from metamae.experiments.plan import Cell, Source, Sweep
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
    given: dict[str, Any] = {"seeds": 2, "device": torch.device("cpu")}
    plan = Sweep(
        datasets={name: Source() for name in names},
        methods=methods,
        protocols=("published",),
        overrides=(*TINY, *overrides),
    )
    return Demo(sweep=plan, out=out, **(given | settings))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """An experiment of all methods and two seeds: its folder and what `run` returned."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    return out, tiny(out).run(SILENT)


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
        ["basic_motions", RESULTS, "curves.png", "reconstructions.png"]
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
    rows = tiny(folder).run(SILENT)
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
    assert values(tiny(folder).run(SILENT)) == values(finished[1])
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
        tiny(tmp_path, seeds=1).run(SILENT)
    assert [row.method for row in read_results(tmp_path / RESULTS)] == ["random", "mae"]
    rows = tiny(tmp_path, seeds=1).run(SILENT)
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
        tiny(folder, override).run(SILENT)
    assert (folder / RESULTS).read_bytes() == before


def test_another_probe_is_fitted_anew(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    rows = tiny(folder, "probe.epochs=4").run(SILENT)
    assert len(rows) == len(finished[1])
    assert all("4 epochs" in row.settings for row in rows)


def test_a_run_without_its_configuration_is_probed_again(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has it."""
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    (folder / "basic_motions" / "default" / "mae" / "seed-0" / CONFIG).unlink()
    assert values(tiny(folder).run(SILENT)) == values(finished[1])


def test_runs_of_an_earlier_version_are_found(
    folder: Path, finished: tuple[Path, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lay in DATASET/METHOD/seed-N."""
    monkeypatch.setattr(cell, "pretrain", refuse_training)
    for run in (folder / "basic_motions" / "default").iterdir():
        run.rename(folder / "basic_motions" / run.name)
    assert tiny(folder).run(SILENT) == finished[1]


def test_resuming_after_a_resume_with_more_steps(folder: Path) -> None:
    """An unfinished run may be given more steps, and its row then counts as made with these."""
    settings = {"methods": ("mae",), "seeds": 1}
    (folder / RESULTS).unlink()
    (row,) = tiny(folder, "training.steps=6", **settings).run(SILENT)
    assert row.steps == 6
    assert tiny(folder, "training.steps=6", **settings).run(SILENT) == [row]
    with pytest.raises(CheckpointError):
        tiny(folder, **settings).run(SILENT)


def test_a_seed_may_have_been_resumed_with_more_steps_and_another_not(folder: Path) -> None:
    """Their histories were logged at different steps; the curves are drawn all the same."""
    (folder / RESULTS).unlink()
    shutil.rmtree(folder / "basic_motions" / "default" / "mae" / "seed-1")
    rows = tiny(folder, "training.steps=7", methods=("mae",)).run(SILENT)
    assert [row.steps for row in rows] == [7, 7]


def test_a_folder_may_hold_results_of_other_data_sets(folder: Path) -> None:
    """They are kept in the file, and returned too or not, but are no reason to fail."""
    rows = tiny(folder, names=("vowels",), seeds=1, methods=("random",)).run(SILENT)
    assert ("vowels", "random", 0) in [(row.dataset, row.method, row.seed) for row in rows]
    assert len(read_results(folder / RESULTS)) == 7


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_damaged_history_is_a_clear_error(folder: Path, content: str | None) -> None:
    history = folder / "basic_motions" / "default" / "mae" / "seed-0" / HISTORY
    history.unlink() if content is None else history.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        tiny(folder).run(SILENT)
    assert str(history) in str(caught.value)


def test_several_data_sets_have_folders_and_pictures_of_their_own(tmp_path: Path) -> None:
    names = ("vowels", "basic_motions")
    rows = tiny(tmp_path, "training.steps=1", names=names, seeds=1, methods=("mae",)).run(SILENT)
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
    rows = tiny(tmp_path, *overrides, seeds=1, methods=methods).run(SILENT)
    assert [row.method for row in rows] == list(methods)
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Runs that take no time but say that they took so many seconds a seed."""

    def take(seconds: float) -> None:
        def run_cell(one: Cell, run_dir: Path, *_: Any, **__: Any) -> list[Result]:
            run_dir.mkdir(parents=True)
            config = one.config
            (run_dir / CONFIG).write_text(config.to_yaml())
            return [
                Result(
                    dataset=config.dataset,
                    method=config.method,
                    seed=config.seed,
                    pretrain_seconds=0.75 * seconds / 3,
                    probe_seconds=0.25 * seconds / 3,
                    transfer=config.dataset,
                    probe_seed=config.seed,
                    protocol="published",
                    settings=describe_protocol("published", config.probe),
                    steps=config.training.steps,
                    batch_size=4,
                    **dict.fromkeys(("value", "train_value"), 0.5),
                    **dict.fromkeys(("metric", "preset", "device"), "x"),
                    **dict.fromkeys(("hardware", "torch", "revision"), "x"),
                )
            ]

        monkeypatch.setattr(sweep, "run_cell", run_cell)
        monkeypatch.setattr(Demo, "_draw", lambda *_: None)

    return take


@pytest.mark.parametrize(
    ("seconds", "names", "expected"),
    [
        (1.0, 1, 3),  # never more than max_seeds
        (79.0, 1, 3),  # 3 * 79 <= 240
        (81.0, 1, 2),  # 3 * 81 > 240, 2 * 81 <= 240
        (121.0, 1, 1),  # 2 * 121 > 240
        (1000.0, 1, 1),  # one seed always
        (59.0, 2, 2),  # 120 seconds for each of two data sets
        (61.0, 2, 1),
    ],
)
def test_as_many_seeds_as_fit_the_budget(
    tmp_path: Path, timed: Callable[[float], None], seconds: float, names: int, expected: int
) -> None:
    timed(seconds)
    chosen = ("basic_motions", "vowels")[:names]
    rows = tiny(tmp_path, names=chosen, seeds=None, budget=240.0).run(SILENT)
    for name in chosen:
        assert {row.seed for row in rows if row.dataset == name} == set(range(expected))
    timed(0.0)  # resuming judges by the recorded times, not by the clock
    assert tiny(tmp_path, names=chosen, seeds=None).run(SILENT) == rows


def test_a_number_of_seeds_is_not_bounded_by_the_budget(
    tmp_path: Path, timed: Callable[[float], None]
) -> None:
    timed(1000.0)
    rows = tiny(tmp_path, seeds=5, budget=1.0).run(SILENT)
    assert {row.seed for row in rows} == {0, 1, 2, 3, 4}


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
