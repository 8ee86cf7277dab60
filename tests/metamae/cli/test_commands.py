"""The ``metamae`` command: what works, and one line for what the user has to mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metamae import load_dataset, make_config
from metamae.cli.probe import PROBES, _variant
from metamae.evaluation.feature_cache import run_features
from metamae.evaluation.protocols import PROTOCOLS, evaluate
from metamae.experiments import cell
from metamae.experiments.sweep import FAILURES, RESULTS
from metamae.report.rows import read_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.run_folder import CHECKPOINT
from tests import ROOT
from tests.metamae.cli.running import Command, in_process, refused
from tests.tiny import SIZES, as_options

TINY = [
    *SIZES,
    *("probe.epochs=3",),
    *("training.steps=2", "training.batch_size=20"),
]
SETTINGS = as_options(TINY)
PRETRAIN = ["pretrain", "basic_motions", *SETTINGS]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    return in_process(capsys)


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    spec = {
        "datasets": ["basic_motions"],
        "methods": ["random", "mae", "metamae"],
        "seeds": 1,
        "protocols": ["published", "knn"],
        "overrides": TINY,
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def test_pretrain_probe_report(command: Command, tmp_path: Path) -> None:
    done = command(*PRETRAIN, "--method", "mae", "--seed", "3", "--out", "run")
    assert done.code == 0, done.err
    trained = Checkpoint.load(tmp_path / "run" / CHECKPOINT)
    assert (trained.config.method, trained.config.seed, trained.step) == ("mae", 3, 2)
    assert trained.config.encoder.width == 16
    done = command("probe", "run", "--protocol", "published", "tuned", "--seeds", "2")
    assert done.code == 0, done.err
    rows = read_results(tmp_path / "run" / PROBES)
    assert {row.seed for row in rows} == {3}
    assert [(row.protocol, row.probe_seed) for row in rows] == [
        ("published", 3),
        ("published", 4),
        ("tuned", 3),
        ("tuned", 4),
    ]
    features = run_features(tmp_path / "run", load_dataset("basic_motions"))
    for row in rows:
        expected = evaluate(row.protocol, features, trained.config.probe, seed=row.probe_seed)
        assert row.value == expected.value
    assert "basic_motions, mae, tuned" in done.out
    # Another protocol is added to what is there, and a repeated one replaces its row.
    again = command("probe", "run", "--protocol", "few-3", "published", "--set", "probe.epochs=7")
    assert again.code == 0, again.err
    assert "over 10 draws" in again.out
    rows = read_results(tmp_path / "run" / PROBES)
    assert len(rows) == 5
    assert "7 epochs" in rows[0].settings
    done = command("report", "run", "--markdown", "report.md", "--figure", "report.svg")
    assert done.code == 0, done.err
    assert "MAE (deep)" in done.out
    assert (tmp_path / "report.md").read_text().startswith("## basic_motions: accuracy, %\n")
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_probe_on_another_data_set(command: Command, tmp_path: Path) -> None:
    assert command("pretrain", "sensors", *SETTINGS, "--method", "random", "--out", "run").code == 0
    done = command("probe", "run", "--on", "basic_motions", "--protocol", "all")
    assert done.code == 0, done.err
    rows = read_results(tmp_path / "run" / PROBES)
    assert {(row.dataset, row.transfer) for row in rows} == {("sensors", "basic_motions")}
    assert [row.protocol for row in rows] == list(PROTOCOLS)
    assert "sensors -> basic_motions" in done.out
    refused(
        command("probe", "run", "--on", "digits"),
        "expected inputs as those of 'sensors' (signal of 6 channels, 4 steps a token)",
    )


def test_the_default_folder_and_a_resume(command: Command, tmp_path: Path) -> None:
    assert command(*PRETRAIN, "--method", "mae").code == 0
    run = tmp_path / "runs" / "basic_motions" / "mae" / "seed-0"
    first = torch.load(run / CHECKPOINT, weights_only=True)["model"]
    refused(command(*PRETRAIN, "--method", "mae"), "holds a checkpoint; add --resume")
    more = command(*PRETRAIN, "--method", "mae", "--resume", "--set", "training.steps=5")
    assert more.code == 0, more.err
    second = torch.load(run / CHECKPOINT, weights_only=True)
    assert second["step"] == 5
    assert any(not torch.equal(first[name], second["model"][name]) for name in first)
    refused(
        command(*PRETRAIN, "--method", "mae", "--resume", "--set", "masking.mask_ratio=0.2"),
        "masking.mask_ratio: 0.5 -> 0.2",
    )


def test_sweep_and_report(command: Command, tmp_path: Path, sweep_file: Path) -> None:
    listing = command("sweep", str(sweep_file), "--list")
    assert "basic_motions/default/metamae/seed-0 -> basic_motions" in listing.out
    assert not (tmp_path / "runs").exists()
    done = command("sweep", str(sweep_file), "--workers", "1")
    assert (done.code, done.err) == (0, "")
    assert "[3/3] basic_motions/default/metamae/seed-0: published " in done.out
    out = tmp_path / "runs" / "small"
    assert len(read_results(out / RESULTS)) == 6
    done = command("report", str(out))
    assert "MetaMAE minus MAE (deep)" in done.out
    done = command("report", str(out), "--against", "random", "--rows", "all.json")
    assert read_results(tmp_path / "all.json") == read_results(out / RESULTS)
    assert "MetaMAE minus random init" in done.out


def test_a_failing_cell_is_told_at_the_end(
    command: Command, tmp_path: Path, sweep_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cell.pretrain

    def failing(config: Any, *arguments: Any, **settings: Any) -> Any:
        if config.method == "mae":
            raise ValueError("no\nluck")
        return real(config, *arguments, **settings)

    monkeypatch.setattr(cell, "pretrain", failing)
    done = command("sweep", str(sweep_file), "--out", "out", "--workers", "1")
    assert done.code == 1
    assert (
        done.err.splitlines()[0] == "failed: basic_motions/default/mae/seed-0: ValueError: no luck"
    )
    assert done.err.splitlines()[1].startswith("error: 1 of 3 cells failed, see out/failures.json")
    assert list(json.loads((tmp_path / "out" / FAILURES).read_text())) == [
        "basic_motions/default/mae/seed-0"
    ]
    monkeypatch.setattr(cell, "pretrain", real)
    done = command("sweep", str(sweep_file), "--out", "out")
    assert (done.code, done.err) == (0, "")
    assert "[3/3] basic_motions/default/mae/seed-0" in done.out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (PRETRAIN, "stopped; nothing was saved yet: the same command starts anew\n"),
        (
            [*PRETRAIN, "--out", "begun", "--resume", "--set", "training.steps=3"],
            "stopped; add --resume to continue from the last checkpoint\n",
        ),
        (
            ["sweep", "small.yaml", "--workers", "1"],
            "stopped; the same command continues the sweep\n",
        ),
    ],
)
def test_interrupts(
    command: Command,
    sweep_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    hint: str,
) -> None:
    assert command(*PRETRAIN, "--out", "begun").code == 0

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("metamae.training.run.Run.train", interrupt)
    done = command(*arguments)
    assert (done.code, done.err) == (130, hint)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrain", "sensor"], ["got 'sensor'; did you mean 'sensors'?"]),
        ([*PRETRAIN, "--method", "mea"], ["did you mean 'mae'?"]),
        ([*PRETRAIN, "--seed", "-1"], ["seed >= 0"]),
        ([*PRETRAIN, "--set", "seed=3"], ["instead of the override seed=3"]),
        ([*PRETRAIN, "--set", "encoder.widht=3"], ["did you mean 'width'?"]),
        ([*PRETRAIN, "--device", "gpu"], ["expected a device such as cpu or cuda, got 'gpu'"]),
        (["probe", "nowhere"], ["expected a checkpoint at nowhere/checkpoint.pt"]),
        (["probe", "nowhere", "--protocol", "tune"], ["did you mean 'tuned'?"]),
        (["probe", "nowhere", "--seeds", "0"], ["at least 1 seed"]),
        (["probe", "nowhere", "--set", "training.steps=1"], ["settings of the probe"]),
        (["sweep", "nowhere.yaml"], ["expected a sweep file at nowhere.yaml"]),
        (["sweep", "small.yaml", "--workers", "0"], ["at least 1 worker, got 0"]),
        (["report", "nowhere"], ["expected results in nowhere, found none"]),
        (["report", "nowhere", "--against", "mea"], ["did you mean 'mae'?"]),
        (["report", "nowhere", "--figure", "a.txt"], ["ending in .png, .svg, .pdf"]),
        (["data", "check", "higs", "--data-dir", "d"], ["did you mean 'higgs'?"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    command: Command, sweep_file: Path, arguments: list[str], expected: list[str]
) -> None:
    refused(command(*arguments), *expected)


def test_a_full_data_set_without_data(command: Command) -> None:
    done = command("pretrain", "pamap2", "--preset", "paper")
    refused(done, "--data-dir")


def test_help_of_every_command(command: Command) -> None:
    assert command("--help").code == 0
    for name in ("pretrain", "probe", "sweep", "report", "data"):
        assert name in command("--help").out
        assert command(name, "--help").code == 0
    assert command("data", "list").code == 0
    assert "error: " in command("nonsense").err
    assert command().code == 2


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "metamae", "probe", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected a checkpoint at ")


def test_importing_leaves_the_environment_alone() -> None:
    """And nothing depends on what is imported first."""
    code = "import os; before = dict(os.environ); import metamae; print(os.environ == before)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True\n"


def test_compare_answers_in_one_sentence(command: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(tmp_path / "table.npz", x=rng.normal(size=(40, 3)) + 2 * y[:, None], kind=y)
    options = ["--label", "kind", "--steps", "1", "--seeds", "1", "--draws", "2", "--workers", "1"]
    sizes = as_options(SIZES)
    only = ["--only", "raw_logistic", "mae"]
    done = command("compare", "table.npz", *options, *sizes, *only)
    assert done.code == 0, done.err
    assert "label 'kind': 2 classes" in done.out
    lines = [line for line in done.out.splitlines() if line.strip()]
    assert lines[-1] == "runs/compare-table/compare.html"
    sentence = next(line for line in lines if "5 labels a class with MAE do what" in line)
    assert sentence.endswith(".")
    assert "caution: 2 draws of labels say little" in done.out
    assert (tmp_path / lines[-1]).is_file()
    refused(
        command("compare", "table.npz", *options, *sizes, *only, "--draws", "4"),
        "draws: 2 -> 4",
        "choose another --out",
    )


def test_compare_refuses_in_one_line(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", x=np.ones((8, 3)), kind=np.arange(8) % 2)
    refused(command("compare", "table.npz", "--label", "knd"), "did you mean 'kind'")
    refused(command("compare", "digits", "--label", "y"), "--label with a path")
    refused(command("compare", "table.npz", "--minutes", "1", "--steps", "2"), "not allowed with")
    refused(command("compare", "table.npz", "--label", "kind", "--only", "svm"), "got 'svm'")
    assert not (tmp_path / "runs").exists()


def test_report_as_a_page(command: Command, tmp_path: Path) -> None:
    assert command(*PRETRAIN, "--out", "run").code == 0
    done = command("report", "run", "--html", "before.html")
    assert done.code == 0, done.err
    before = (tmp_path / "before.html").read_text()
    assert "No run was probed yet" in before
    assert before.count("data:image/png;base64,") == 3, "curves, reconstructions, a map of features"
    assert "step_size: " in before
    assert command("probe", "run", "--set", "probe.epochs=2").code == 0
    assert command("report", "run", "--html", "after.html").code == 0
    after = (tmp_path / "after.html").read_text()
    assert after.count("data:image/png;base64,") == 4
    assert "linear, Adam" in after
    refused(command("report", "elsewhere", "--html", "page.html"), "expected results in elsewhere")
    assert not (tmp_path / "page.html").exists()


def test_a_page_of_a_run_on_own_data_escapes_its_names(command: Command, tmp_path: Path) -> None:
    names = np.where(np.arange(24) % 2, "<b>bold</b>", "a & b")
    x = np.random.default_rng(0).normal(size=(24, 3))
    lines = [
        "<i>,size,colour,label",
        *(f"{a},{b},{c},{n}" for (a, b, c), n in zip(x, names, strict=True)),
    ]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    tiny = as_options((*SIZES, "training.steps=1"))
    done = command("pretrain", "own.csv", "--label", "label", *tiny, "--out", "<run>")
    assert done.code == 0, done.err
    assert command("report", "<run>", "--html", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "&lt;run&gt;" in page
    assert "<run>" not in page
    assert "are not at hand" in page


def test_a_probed_run_of_a_variant_keeps_its_name(tmp_path: Path) -> None:
    """Its row takes the place of no row of the default, whatever the report reads last."""
    config = make_config("sensors", method="mae", seed=3)
    placed = tmp_path / "sensors" / "no_step" / "mae" / "seed-3"
    assert _variant(placed, config, None) == "no_step"
    assert _variant(placed, config, "gradients") == "no_step, gradients"
    usual = tmp_path / "sensors" / "default" / "mae" / "seed-3"
    assert _variant(usual, config, None) == "default"
    assert _variant(usual, config, "tokens") == "tokens"
    for elsewhere in (tmp_path / "run", placed.with_name("seed-4"), Path("run")):
        assert _variant(elsewhere, config, None) == "default"
