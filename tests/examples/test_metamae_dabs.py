"""The command: one line of error and exit code 2 for whatever is the user's to mend."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from metamae.config.presets import list_presets, make_config
from metamae.data import pocket
from metamae.data.pocket import POCKET, stands_for
from metamae.experiments import sweep
from metamae.experiments.demo import Demo
from metamae.experiments.sweep import RESULTS
from metamae.report.wording import LABELS
from tests import ROOT
from tests.tiny import SIZES, as_options

SCRIPT = ROOT / "examples" / "metamae_dabs.py"
TINY = [
    *SIZES,
    *(
        "probe.epochs=2",
        "training.batch_size=20",
    ),
]
FLAGS = ["--dataset", "basic_motions", "--steps", "2", "--seeds", "1", "--workers", "1"]
SETTINGS = as_options(TINY)
TABLE = "Linear probe on frozen features"


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metamae_dabs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


cli = module()
Command = Callable[..., SimpleNamespace]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the command in an empty folder, in this process; later flags replace earlier ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*flags: str) -> SimpleNamespace:
        try:
            code = cli.main([*FLAGS, *SETTINGS, *flags])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of all methods."""
    out = tmp_path_factory.mktemp("original") / "new" / "folder"
    assert cli.main([*FLAGS, *SETTINGS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "finished"))


def refused(done: SimpleNamespace, *expected: str) -> None:
    """Exit code 2, a single line, no traceback; and it says what is expected of it."""
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    for text in expected:
        assert text in done.err
    assert TABLE not in done.out


def values(folder: Path) -> dict[tuple[str, str, int], float]:
    rows = json.loads((folder / RESULTS).read_text())
    return {(row["dataset"], row["method"], row["seed"]): row["value"] for row in rows}


# What works


def test_a_run_from_a_shell(tmp_path: Path) -> None:
    """As a user would, in a fresh process: output, files, exit codes, warnings as errors."""
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", str(SCRIPT), *FLAGS, *SETTINGS, "--methods", "mae"]
    done = subprocess.run(
        [*command, "--out", "made/here"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("made/here on ")
    assert lines[-1] == "results and pictures: made/here"
    assert TABLE in done.stdout
    assert LABELS["mae"] in done.stdout
    assert any("basic_motions" in line and "pretrain" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == sorted(
        ["basic_motions", RESULTS, "times.json", "curves.png", "reconstructions.png"]
    )
    assert list(values(tmp_path / "made" / "here")) == [("basic_motions", "mae", 0)]
    assert os.listdir(tmp_path) == ["made"]


def test_new_folders_and_a_resume_with_one_more_seed(
    command: Command, tmp_path: Path, original: Path
) -> None:
    """Without `--out` the folder is a new one below `runs`, and `--resume` takes the latest."""
    for _ in range(2):
        assert command("--methods", "random").code == 0
    folders = [tmp_path / "runs" / f"basic_motions-pocket-{number}" for number in (1, 2)]
    assert sorted((tmp_path / "runs").iterdir()) == folders
    first = json.loads((folders[1] / RESULTS).read_text())
    done = command("--methods", "random", "--seeds", "2", "--resume")
    assert done.code == 0
    assert done.out.splitlines()[-1].endswith(f"runs/{folders[1].name}")
    assert "mean ± std" in done.out
    second = json.loads((folders[1] / RESULTS).read_text())
    assert second[0] == first[0]
    assert [row["seed"] for row in second] == [0, 1]
    assert len(values(folders[0])) == 1
    assert first[0]["value"] == values(original)["basic_motions", "random", 0]


def test_an_interrupt_ends_with_a_hint_and_resume_continues(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original: Path
) -> None:
    real = sweep.run_cell

    def interrupted(cell: Any, *arguments: Any, **settings: Any) -> Any:
        if cell.config.method == "metamae":
            raise KeyboardInterrupt
        return real(cell, *arguments, **settings)

    monkeypatch.setattr(sweep, "run_cell", interrupted)
    done = command("--out", "cut")
    assert done.code == 130
    assert done.err == "stopped; add --resume to continue from the last checkpoint\n"
    assert len(values(tmp_path / "cut")) == 2
    monkeypatch.setattr(sweep, "run_cell", real)
    assert command("--out", "cut", "--resume").code == 0
    assert values(tmp_path / "cut") == values(original)


@pytest.mark.parametrize("preset", ["pocket", "paper"])
def test_every_data_set_at_once(
    command: Command, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    """Each with its own preset, and with the flags that hold for all."""
    asked: dict[str, Any] = {}

    def run(self: Demo, reporter: Any) -> Any:
        asked.update({cell.config.dataset: cell.config for cell in self.sweep.cells()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Demo, "run", run)
    assert command("--dataset", "all", "--preset", preset).code == 130
    assert list(asked) == list(POCKET)
    for name, config in asked.items():
        expected = make_config(
            name,
            preset=preset,
            preset_name=stands_for(name) if preset == "paper" else name,
            overrides=[*TINY, "training.steps=2"],
            method="metamae",
            seed=config.seed,
        )
        assert config == expected
        assert config.encoder.width == 16


def test_help_names_every_flag(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    assert done.err == ""
    flags = [
        "dataset",
        "methods",
        "steps",
        "seeds",
        "workers",
        "threads",
        "device",
        "out",
        "preset",
        "data-dir",
        "compile",
    ]
    for flag in (*flags, "compile", "resume", "set"):
        assert f"--{flag} " in done.out or f"--{flag}\n" in done.out
    assert all(name in done.out for name in POCKET)
    assert all(name in done.out for name in LABELS)


def test_other_data_sets_in_the_resumed_folder(command: Command, finished: Path) -> None:
    flags = ("--methods", "random", "--out", str(finished), "--resume")
    assert command(*flags, "--dataset", "vowels").code == 0
    assert command(*flags).code == 0
    assert len(values(finished)) == 4


@pytest.mark.parametrize("name", ["x[red]y", "x[/y]"])
def test_a_folder_name_with_brackets(command: Command, name: str) -> None:
    done = command("--methods", "random", "--out", name)
    assert done.code == 0
    assert done.out.startswith(name)
    assert done.out.endswith(f"results and pictures: {name}\n")


# What is refused


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dataset", "sensor"], ["got 'sensor'; did you mean 'sensors'?"]),
        (["--dataset", ""], ["expected a data set among sensors"]),
        (
            ["--methods", "mea"],
            ["expected a method among random, emix, ", "got 'mea'; did you mean 'mae'?"],
        ),
        (["--seeds", "0"], ["at least 1 seed, got 0"]),
        (["--seeds", "-2"], ["at least 1 seed, got -2"]),
        (["--steps", "-3"], ["training.steps >= 0, got -3"]),
        (["--set", "encoder.widht=3"], ["in encoder", "did you mean 'width'?"]),
        (["--set", "training.batch_size=0"], ["training.batch_size >= 1, got 0"]),
        (["--set", "training.batch_size=99"], ["'basic_motions' has 40"]),
        (["--set", "training.batch_size=many"], ["training.batch_size to be int, got 'many'"]),
        (["--set", "masking.mask_ratio=1"], ["masking.mask_ratio between 0 and 1"]),
        (["--set", "token_size=7"], ["got 100 and 7; choose a token size that divides it"]),
        (["--set", "nonsense"], ["expected an override like training.steps=100"]),
        (["--set", "training.learning_rate=1e30", "--methods", "mae"], ["finite", "at step 2"]),
        (["--device", "gpu"], ["expected a device such as cpu or cuda, got 'gpu'"]),
        (["--device", ""], ["expected a device such as cpu or cuda, got ''"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    command: Command, flags: list[str], expected: list[str]
) -> None:
    refused(command(*flags), *expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:9"])
def test_cuda_where_there_is_none(command: Command, device: str) -> None:
    refused(command("--device", device), "expected a CUDA device, found none; use --device cpu")


@pytest.mark.parametrize("name", list_presets("paper"))
def test_a_full_data_set_has_to_be_prepared_first(
    command: Command, tmp_path: Path, name: str
) -> None:
    done = command("--dataset", name, "--data-dir", "elsewhere")
    refused(done, f"metamae data prepare {name} --data-dir elsewhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", [["--steps", "few"], ["--preset", "small"], ["--nonsense"], ["--methods"]]
)
def test_flags_that_cannot_be_read(command: Command, flags: list[str]) -> None:
    """The parser's own message: usage, one line of error, exit code 2."""
    done = command(*flags)
    assert done.code == 2
    assert "error: " in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_folder_with_results_is_not_overwritten(command: Command, finished: Path) -> None:
    before = (finished / RESULTS).read_bytes()
    refused(command("--out", str(finished)), str(finished), "add --resume to continue them")
    assert (finished / RESULTS).read_bytes() == before
    done = command("--out", str(finished), "--resume", "--steps", "3", "--methods", "mae")
    refused(done, "a run of 3 steps, its result was made after 2", "another output folder")
    assert (finished / RESULTS).read_bytes() == before


@pytest.mark.parametrize("content", [b"[{", b"null", b"[1]", b"\xff\xfe", b""])
def test_damaged_results_are_one_line(command: Command, finished: Path, content: bytes) -> None:
    (finished / RESULTS).write_bytes(content)
    refused(command("--out", str(finished), "--resume"), RESULTS, "damaged")
    assert (finished / RESULTS).read_bytes() == content


def test_a_damaged_checkpoint_is_one_line(command: Command, finished: Path) -> None:
    checkpoint = finished / "basic_motions" / "default" / "mae" / "seed-0" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (finished / RESULTS).unlink()
    done = command("--out", str(finished), "--resume", "--methods", "mae")
    refused(done, str(checkpoint), "damaged", "delete its folder and run again")


def test_a_damaged_data_set_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(Path(pocket.__file__).parent / "pocket", folder)
    monkeypatch.setattr(pocket, "resources", SimpleNamespace(files=lambda package: tmp_path))
    content = bytearray((folder / "basic_motions.npz").read_bytes())
    content[5000] ^= 1
    (folder / "basic_motions.npz").write_bytes(bytes(content))
    refused(command(), "'basic_motions'", "SHA-256", "damaged", "reinstall")
    (folder / "basic_motions.npz").unlink()
    refused(command(), "basic_motions.npz", "missing", "reinstall")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_the_way_of_the_folder(command: Command, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    refused(command("--out", out), "file")


def test_a_folder_that_cannot_be_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, who runs tests in containers: so the system says no."""

    def mkdir(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(command("--out", "forbidden"), "Permission denied", "forbidden")


def test_a_full_disk(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    refused(command(), "No space left on device")


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "vulkan", "hpu"])
def test_a_device_that_nothing_runs_on(command: Command, device: str) -> None:
    refused(command("--device", device), device)


@pytest.mark.parametrize(
    "setting",
    [
        "training.steps=[",
        "decoder.mlp_ratio=-1",
        "contrast.hidden=0",
        "probe.weight_decay=-1",
        "adaptation.step_size=.inf",
        "training.batch_size=1",
        "training.learning_rate=.inf",
    ],
)
def test_a_setting_that_torch_would_refuse(command: Command, setting: str) -> None:
    done = command("--methods", "metamae", "--set", setting)
    refused(done, setting.partition("=")[0])


@pytest.mark.parametrize("setting", ["dataset=digits", "method=mae", "seed=3", "preset=paper"])
def test_a_setting_with_a_flag_of_its_own(command: Command, setting: str) -> None:
    """The flags would silently win."""
    refused(command("--methods", "random", "--set", setting), setting.partition("=")[0])


def test_a_run_that_diverges_in_its_last_step(command: Command) -> None:
    """No later step would tell: what its update left is looked at before it is saved."""
    done = command("--steps", "1", "--methods", "mae", "--set", "training.learning_rate=1e30")
    refused(done, "expected finite weights, the update of step 1 left the loss NaN")


def test_an_output_that_cannot_hold_every_letter(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a log file in an ASCII locale: `±` may be replaced, the table must come."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert command("--methods", "random").code == 0
    stream.flush()
    assert TABLE in stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_memory_that_runs_out(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most common failure on a GPU."""

    def run(self: Demo, reporter: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore advice")

    monkeypatch.setattr(Demo, "run", run)
    refused(command(), "out of memory", "training.batch_size")


def test_a_cuda_device_that_is_not_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(command("--device", "cuda:2"), "cuda:2")


def test_the_advice_to_delete_a_folder_and_run_again(command: Command, finished: Path) -> None:
    """As the errors on a damaged checkpoint or history say."""
    before = values(finished)
    shutil.rmtree(finished / "basic_motions" / "default" / "mae" / "seed-0")
    assert command("--out", str(finished), "--resume").code == 0
    assert values(finished) == before
