"""Sweeps: what a file lists is run once, exactly, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metamae import CheckpointError, ConfigError, InputError, load_dataset
from metamae.config.names import METHODS
from metamae.config.schema import Config
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.features import Features, compute_features
from metamae.evaluation.protocols import PROTOCOLS, evaluate
from metamae.experiments import cell
from metamae.experiments import sweep as sweeping
from metamae.experiments.plan import Sweep, resolve
from metamae.experiments.sweep import FAILURES, RESULTS, TRACEBACK, SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.experiments.workers import run_side_by_side
from metamae.inputs import Image, Signal, Tabular, Tokens, check_transfer
from metamae.progress import Reporter
from metamae.report.rows import Key, Result, read_results
from metamae.training.auto import auto_config
from metamae.training.run_folder import CHECKPOINT, load_method
from tests import ROOT
from tests.tiny import FIRST_NINE, SIZES

TINY = [
    *SIZES,
    *("probe.epochs=3",),
    *("training.steps=6", "training.batch_size=20", "training.checkpoint_every=2"),
]
SPEC: dict[str, Any] = {
    "datasets": {"basic_motions": {"probe": ["basic_motions"]}},
    "methods": ["random", "metamae"],
    "seeds": [0],
    "protocols": ["published", "few-1"],
    "overrides": TINY,
}
SILENT = Reporter(None)


def spec(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


def make(folder: Path, *, workers: int = 1, **changes: Any) -> SweepRun:
    sweep = read_sweep(spec(folder, **changes))
    return SweepRun(sweep=sweep, out=folder / "out", device=torch.device("cpu"), workers=workers)


def untimed(rows: Sequence[Result]) -> dict[Key, Result]:
    return {row.key: replace(row, pretrain_seconds=0.0, probe_seconds=0.0) for row in rows}


# Running


def test_one_row_for_every_combination(tmp_path: Path) -> None:
    variants = {"default": None, "deep": {"methods": ["metamae"], "overrides": ["decoder.depth=2"]}}
    rows, failures = make(tmp_path, seeds=2, variants=variants).run(SILENT)
    assert failures == {}
    assert not (tmp_path / "out" / FAILURES).exists()
    assert {row.key for row in rows} == {
        Key("basic_motions", "basic_motions", method, variant, seed, protocol, seed)
        for method, variant in (("random", "default"), ("metamae", "default"), ("metamae", "deep"))
        for seed in (0, 1)
        for protocol in ("published", "few-1")
    }
    assert read_results(tmp_path / "out" / RESULTS) == rows
    for row in rows:
        assert row.steps == (0 if row.method == "random" else 6)
        assert (row.preset, row.batch_size, row.device) == ("pocket", 20, "cpu")
        assert (row.spread > 0, row.draws) == (
            (True, 10) if row.protocol == "few-1" else (False, 1)
        )
        run_dir = tmp_path / "out" / "basic_motions" / row.variant / row.method / f"seed-{row.seed}"
        found = Config.from_dict(yaml.safe_load((run_dir / "config.yaml").read_text()))
        assert found.decoder.depth == (2 if row.variant == "deep" else 1)
        data = load_dataset("basic_motions")
        method = load_method(run_dir / CHECKPOINT, data.inputs)
        features = Features.of(data, *compute_features(method, data))
        expected = evaluate(row.protocol, features, found.probe, seed=row.seed)
        assert (row.value, row.spread, row.settings) == (
            expected.value,
            expected.spread,
            expected.settings,
        )


def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    first, _ = run.run(SILENT)
    monkeypatch.setattr(cell, "pretrain", None)  # a pretraining would fail
    again, failures = run.run(SILENT)
    assert (again, failures) == (first, {})
    # A new protocol needs the features, which are there too.
    monkeypatch.setattr("metamae.evaluation.feature_cache.load_method", None)
    more, failures = make(tmp_path, protocols=["published", "few-1", "knn"]).run(SILENT)
    assert failures == {}
    assert len(more) == 6
    assert [row for row in more if row.protocol != "knn"] == first


def test_other_settings_of_the_probe_replace_its_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make(tmp_path).run(SILENT)
    monkeypatch.setattr(cell, "pretrain", None)
    changed = make(tmp_path, overrides=[*TINY, "probe.epochs=4"])
    rows, failures = changed.run(SILENT)
    assert failures == {}
    assert [row for row in rows if row.protocol == "few-1"] == [
        row for row in first if row.protocol == "few-1"
    ]
    assert all("4 epochs" in row.settings for row in rows if row.protocol == "published")


def test_other_settings_of_the_run_are_refused(tmp_path: Path) -> None:
    make(tmp_path).run(SILENT)
    before = (tmp_path / "out" / RESULTS).read_bytes()
    with pytest.raises(
        CheckpointError, match=r"masking.mask_ratio: 0\.\d+ -> 0\.3; .* another output folder"
    ):
        make(tmp_path, overrides=[*TINY, "masking.mask_ratio=0.3"]).run(SILENT)
    assert (tmp_path / "out" / RESULTS).read_bytes() == before


def test_an_interrupt_in_pretraining_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes through at once; the same sweep ends with the same bits."""
    from metamae.training import pretraining as training

    expected, _ = make(tmp_path / "whole").run(SILENT)
    real, calls = training.Run.loss, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(self.step)
        if self.step == 3 and len(calls) < 6:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(training.Run, "loss", interrupted)
    run = make(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run.run(SILENT)
    assert len(read_results(run.out / RESULTS)) == 2
    rows, failures = run.run(SILENT)
    assert failures == {}
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    assert untimed(rows) == untimed(expected)


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    found = torch.load(out / name / CHECKPOINT, weights_only=True)["model"]
    return dict(found)


def test_a_sweep_that_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A real process, killed without warning in the middle of a pretraining."""
    slow = [*TINY, "training.steps=50"]
    changes: dict[str, Any] = {"methods": ["metamae"], "protocols": ["few-1"], "overrides": slow}
    whole = make(tmp_path / "whole", **changes)
    expected, _ = whole.run(SILENT)
    file, out = spec(tmp_path / "cut", **changes), tmp_path / "cut" / "out"
    name = "basic_motions/default/metamae/seed-0"
    command = [sys.executable, "-m", "metamae", "sweep", str(file), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / name / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(out / name / CHECKPOINT, weights_only=True)["step"]
    assert 0 < step < 50
    rows, failures = make(tmp_path / "cut", **changes).run(SILENT)
    assert failures == {}
    assert untimed(rows) == untimed(expected)
    ours, theirs = weights(out, name), weights(whole.out, name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """It is recorded, reported, and tried again; here it is mended in between."""
    variants = {"default": None, "bad": {"overrides": ["training.learning_rate=1e30"]}}
    run = make(tmp_path, methods=["metamae"], variants=variants, seeds=2)
    rows, failures = run.run(SILENT)
    bad = [f"basic_motions/bad/metamae/seed-{seed}" for seed in (0, 1)]
    assert list(failures) == bad
    assert failures[bad[0]].startswith("TrainingError: expected ")
    assert {row.variant for row in rows} == {"default"}
    assert json.loads((run.out / FAILURES).read_text()) == failures
    assert "Traceback" in (run.out / bad[0] / TRACEBACK).read_text()
    for name in bad:
        for file in (run.out / name).iterdir():
            file.unlink()
        (run.out / name).rmdir()
    rows, failures = make(
        tmp_path, methods=["metamae"], seeds=2, variants={"default": None, "bad": None}
    ).run(SILENT)
    assert failures == {}
    assert {row.variant for row in rows} == {"default", "bad"}
    assert not (run.out / FAILURES).exists()


def test_any_exception_of_a_cell_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cell.pretrain

    def failing(config: Config, *arguments: Any, **settings: Any) -> Any:
        if config.method == "random":
            raise MemoryError("none left")
        return real(config, *arguments, **settings)

    monkeypatch.setattr(cell, "pretrain", failing)
    rows, failures = make(tmp_path).run(SILENT)
    assert list(failures.values()) == ["MemoryError: none left"]
    assert {row.method for row in rows} == {"metamae"}
    monkeypatch.setattr(cell, "pretrain", real)
    rows, failures = make(tmp_path).run(SILENT)
    assert failures == {}
    assert len(rows) == 4


def test_workers_make_the_same_rows_and_survive_failures(tmp_path: Path) -> None:
    variants = {"default": None, "bad": {"overrides": ["training.learning_rate=1e30"]}}
    changes: dict[str, Any] = {"variants": variants, "methods": ["metamae"]}
    alone = make(tmp_path / "one", **changes).run(SILENT)
    several = make(tmp_path / "two", workers=2, **changes).run(SILENT)
    assert untimed(alone[0]) == untimed(several[0])
    assert alone[1] == several[1]
    assert len(alone[1]) == 1


def test_a_worker_that_dies_costs_its_cell(tmp_path: Path) -> None:
    """As when the system runs out of memory and kills it."""
    run = make(tmp_path, methods=["random"])
    (one,) = run.sweep.cells()
    dying = _Dying(one, run.out / one.name, tuple(one.keys), run.device, None)
    sound = sweeping._Job(one, run.out / one.name, tuple(one.keys), run.device, None)
    with SILENT.stage("cells", total=2) as stage:
        made = [result for _, result in run_side_by_side([dying, sound], 1, 1, stage)]
    assert isinstance(made[0], Exception)
    assert isinstance(made[1], list)
    assert [row.key for row in made[1]] == one.keys


@pytest.mark.slow
def test_what_every_worker_does_is_shown(tmp_path: Path) -> None:
    """By name, while it runs; nothing is left when all have ended."""
    run = make(tmp_path, overrides=[*TINY, "training.steps=40"])
    jobs = [
        sweeping._Job(cell, run.out / cell.name, tuple(cell.keys), run.device, None)
        for cell in run.sweep.cells()
    ]
    shown: list[dict[str, str]] = []
    with SILENT.stage("cells", total=2) as stage:
        stage.show = shown.append  # type: ignore[method-assign, assignment]
        list(run_side_by_side(jobs, 2, 1, stage))
    assert {job.name for job in jobs} == {name for parts in shown for name in parts}
    texts = {text for parts in shown for text in parts.values()}
    assert "starts" in texts
    assert any(re.match(r"(pretrain|published|few-\d) \d+/\d+", text) for text in texts)
    assert shown[-1] == {}


class _Dying(sweeping._Job):
    def run(self, reporter: Reporter | None = None) -> list[Result]:
        os._exit(9)


# Transfer


def test_an_encoder_is_probed_on_another_data_set(tmp_path: Path) -> None:
    datasets = {"sensors": {"probe": ["sensors", "basic_motions"]}}
    rows, failures = make(tmp_path, datasets=datasets, methods=["mae"]).run(SILENT)
    assert failures == {}
    assert [(row.dataset, row.transfer, row.protocol) for row in rows] == [
        ("sensors", target, protocol)
        for target in ("sensors", "basic_motions")
        for protocol in ("published", "few-1")
    ]
    run_dir = tmp_path / "out" / "sensors" / "default" / "mae" / "seed-0"
    target = load_dataset("basic_motions")
    features = run_features(run_dir, target)
    assert features.train.shape == (40, 16)
    trained = load_method(run_dir / CHECKPOINT, load_dataset("sensors").inputs)
    with torch.no_grad():
        expected = trained.features(target.need("test").batch(slice(None)))
    torch.testing.assert_close(features.test, expected)


def test_data_that_an_encoder_cannot_read(tmp_path: Path) -> None:
    datasets = {"basic_motions": {"probe": ["digits"]}}
    rows, failures = make(tmp_path, datasets=datasets, methods=["random"]).run(SILENT)
    assert rows == []
    (error,) = failures.values()
    assert error.startswith("InputError: expected inputs as those of 'basic_motions' (signal of 6")
    assert "'digits' (image of 1 channels, patches of 2 x 2)" in error


@pytest.mark.parametrize(
    ("source", "target", "same"),
    [
        (Tokens(name="a", length=9, vocabulary=4), Tokens(name="b", length=5, vocabulary=4), True),
        (Tokens(name="a", length=9, vocabulary=4), Tokens(name="a", length=9, vocabulary=5), False),
        (
            Tokens(name="a", length=9, vocabulary=2, alphabet=("x", "y")),
            Tokens(name="a", length=9, vocabulary=2, alphabet=("y", "x")),
            False,
        ),
        (Tabular(name="a", columns=3), Tabular(name="a", columns=4), False),
        (
            Signal(name="a", channels=2, length=8, token_length=2),
            Signal(name="a", channels=2, length=8, token_length=4),
            False,
        ),
        (
            Image(name="a", channels=3, height=8, width=8, patch=(4, 4)),
            Image(name="b", channels=3, height=16, width=8, patch=(4, 4)),
            True,
        ),
    ],
)
def test_what_one_token_holds_must_be_equal(source: Any, target: Any, same: bool) -> None:
    if same:
        check_transfer((source,), (target,), names=("a", "b"))
        return
    with pytest.raises(InputError, match="with equal tokens"):
        check_transfer((source,), (target,), names=("a", "b"))


# Cached features


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    make(tmp_path, methods=["random"]).run(SILENT)
    return tmp_path / "out" / "basic_motions" / "default" / "random" / "seed-0"


def test_features_are_computed_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("basic_motions")
    first = run_features(run_dir, data)
    monkeypatch.setattr("metamae.evaluation.feature_cache.load_method", None)
    again = run_features(run_dir, data)
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.test, again.test)
    with pytest.raises(TypeError):  # other tokens, so other features
        run_features(run_dir, load_dataset("basic_motions", token_size=[2]))


@pytest.mark.parametrize("damage", ["checkpoint", "cut", "other file"])
def test_features_of_another_checkpoint_are_not_used(run_dir: Path, damage: str) -> None:
    data = load_dataset("basic_motions")
    first = run_features(run_dir, data)
    cache = run_dir / "features-basic_motions.pt"
    if damage == "checkpoint":
        payload = torch.load(run_dir / CHECKPOINT, weights_only=True)
        payload["model"]["network.encoder.norm.weight"].zero_()
        torch.save(payload, run_dir / CHECKPOINT)
        again = run_features(run_dir, data)
        assert not torch.equal(first.test, again.test)
        assert again.test.std(0).max() < 1e-6  # only the shift of the final norm is left
        return
    if damage == "cut":
        cache.write_bytes(cache.read_bytes()[:500])
    else:
        torch.save([1], cache)
    assert torch.equal(run_features(run_dir, data).test, first.test)
    assert torch.load(cache, weights_only=True)["test"].shape == (40, 16)


def test_no_checkpoint_no_features(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none; check the path, or pretrain first"):
        run_features(tmp_path, load_dataset("basic_motions"))


# Sweep files


def test_the_files_in_the_repository() -> None:
    pocket = read_sweep(ROOT / "benchmarks" / "sweeps" / "pocket.yaml")
    cells = pocket.cells()
    assert {one.config.dataset for one in cells} == set(FIRST_NINE)
    assert {one.config.method for one in cells} == set(METHODS)
    assert len(cells) == len(FIRST_NINE) * len(METHODS) * 3
    assert {key.protocol for one in cells for key in one.keys} == set(PROTOCOLS)
    assert ("sensors", "basic_motions") in {
        (key.dataset, key.transfer) for one in cells for key in one.keys
    }
    ablation = read_sweep(ROOT / "benchmarks" / "sweeps" / "ablation.yaml")
    settings = {
        (one.config.masking.nearby_ratio, one.config.decoder.depth) for one in ablation.cells()
    }
    assert {ratio for ratio, _ in settings} == {0.0, 0.1, 0.5}
    assert {depth for _, depth in settings} == {0, 2, 4}
    assert len({one.config.dataset for one in ablation.cells()}) == 3
    cross = read_sweep(ROOT / "benchmarks" / "sweeps" / "cross.yaml")
    assert {one.config.decoder.attention for one in cross.cells()} == {"cross"}
    assert len(cross.cells()) == len(FIRST_NINE) * 2 * 3


def test_defaults_are_everything(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("datasets: [sensors, digits]\nseeds: 2\n")
    assert read_sweep(path) == Sweep(
        datasets=read_sweep(path).datasets,
        methods=METHODS,
        seeds=(0, 1),
        protocols=PROTOCOLS,
    )
    # Seeds are outermost: a sweep that is stopped has compared all methods on some of them.
    seeds = [one.config.seed for one in read_sweep(path).cells()]
    assert seeds == sorted(seeds)
    assert all(one.targets == (one.config.dataset,) for one in read_sweep(path).cells())


def test_overrides_add_up(tmp_path: Path) -> None:
    datasets = {"sensors": {"overrides": ["training.steps=9", "decoder.depth=3"]}, "digits": None}
    variants = {"deep": {"overrides": ["decoder.depth=5"], "datasets": ["sensors"]}, "same": None}
    sweep = read_sweep(spec(tmp_path, datasets=datasets, variants=variants, methods=["mae"]))
    assert {
        one.name: (one.config.training.steps, one.config.decoder.depth, one.config.encoder.width)
        for one in sweep.cells()
    } == {
        "sensors/deep/mae/seed-0": (9, 5, 16),
        "sensors/same/mae/seed-0": (9, 3, 16),
        "digits/same/mae/seed-0": (6, 1, 16),
    }


def test_the_paper_preset_of_an_embedded_set() -> None:
    assert resolve("sensors", "paper", "metamae", 0).encoder.width == 256
    assert resolve("pamap2", "paper", "metamae", 0).adaptation.step_size == 0.5


def test_the_preset_auto_of_embedded_sets(tmp_path: Path) -> None:
    """As ``auto_config`` makes it, of as many steps as is said; none of an untrained encoder."""
    changes = {"datasets": ["digits"], "methods": ["random", "mae"], "seeds": [3]}
    overrides = ["training.steps=7", "decoder.depth=3"]
    sweep = read_sweep(spec(tmp_path, preset="auto", overrides=overrides, **changes))
    untrained, mae = (cell.config for cell in sweep.cells())
    options = {"method": "mae", "seed": 3, "overrides": overrides}
    assert mae == auto_config(load_dataset("digits"), **options)
    assert (mae.preset, mae.training.steps, mae.training.schedule) == ("auto", 7, "cosine")
    assert (untrained.training.steps, untrained.decoder.depth) == (0, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"preset": "auto", "overrides": []},
            "training.steps=N among the overrides of 'basic_motions'",
        ),
        (
            {"preset": "auto", "datasets": ["pamap2"]},
            "expected embedded data sets under the preset auto in a sweep, got 'pamap2'; use",
        ),
        ({"dataset": 1}, "'dataset'; did you mean 'datasets'?"),
        ({"datasets": ["sensor"]}, "got 'sensor'; did you mean 'sensors'?"),
        ({"datasets": []}, "one or more datasets in a sweep, got none"),
        ({"datasets": "sensors"}, "keys and values in datasets, got 'sensors'"),
        ({"datasets": {"sensors": {"prob": []}}}, "in datasets.sensors, got 'prob'"),
        ({"datasets": {"sensors": {"probe": ["digit"]}}}, "did you mean 'digits'?"),
        (
            {"methods": ["mea"]},
            "expected a method among random, emix, shed, capri, mae_linear, lfr, mae, umae, "
            "mae_contrast, gon, metamae, supervised, got 'mea'; did you mean 'mae'?",
        ),
        ({"methods": "mae, random"}, "got 'mae, random'"),
        ({"seeds": [-1]}, "a list of numbers >= 0, got [-1]"),
        ({"seeds": [0, 0]}, "got [0, 0]"),
        ({"seeds": "three"}, "got 'three'"),
        ({"protocols": ["tune"]}, "did you mean 'tuned'?"),
        ({"protocols": [1]}, "a list of texts for protocols, got [1]"),
        ({"variants": {"a/b": None}}, "fit for a folder, got 'a/b'"),
        ({"variants": {"a": {"methods": ["x"]}}}, "the methods of variant 'a'"),
        ({"variants": {"a": {"datasets": ["digits"]}}}, "the data sets of variant 'a'"),
        ({"preset": "huge"}, "in preset, got 'huge'"),
        ({"overrides": ["encoder.widht=3"]}, "did you mean 'width'?"),
        ({"overrides": ["seed=3"]}, "instead of the override seed=3"),
    ],
)
def test_what_a_file_gets_wrong(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(spec(tmp_path, **changes)).cells()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[", "1", "", "methods: [mae]", "\x00"])
def test_a_file_that_is_no_sweep(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="sweep file at"):
        read_sweep(tmp_path / "none.yaml")
