"""The page on own data: its commands and programs run, on data as it describes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from metamae.cli import main as cli
from metamae.cli.main import make_parser
from metamae.data.own import KINDS
from metamae.experiments.own_data import OWN_KEYS
from metamae.experiments.sweep_file import read_sweep
from tests import ROOT
from tests.metamae.data.own.making import make_people, make_pictures, make_signals, make_sounds
from tests.tiny import SIZES, as_options

PAGE = (ROOT / "docs" / "your-data.md").read_text()
TABLE = re.findall(r"\| `(metamae pretrain [^`]+)` \|", PAGE)
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.split("\n")
    if line
]
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SETTINGS = as_options((*SIZES, "training.steps=1", "training.batch_size=4", "probe.epochs=1"))


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng, signals = np.random.default_rng(0), make_signals()
    make_people().to_csv("people.csv", index=False)
    np.save("signals.npy", signals["x"])
    np.save("labels.npy", signals["y"])
    np.savez("signals.npz", **signals)
    np.save("images.npy", rng.integers(0, 255, (24, 16, 16, 3)).astype(np.uint8))
    np.save("sequences.npy", rng.integers(0, 4, (24, 30)))
    make_pictures(tmp_path / "pets")
    make_sounds(tmp_path / "tones")


def run(line: str) -> int:
    program, *arguments = shlex.split(line)
    assert program == "metamae"
    settings = SETTINGS if arguments[0] == "pretrain" else SETTINGS[-2:]
    return cli.main([*arguments, *settings])


@pytest.mark.parametrize("line", TABLE)
def test_a_row_of_the_table_trains(line: str) -> None:
    assert run(line) == 0


def test_the_commands_run_one_after_the_other() -> None:
    assert len(LINES) == 2
    assert [run(line) for line in LINES] == [0, 0]


def test_the_programs_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamae.training.auto.seconds_a_step", lambda *_: 1e9)
    monkeypatch.setattr("metamae.training.auto.LEAST", 1)
    assert len(PROGRAMS) == 2
    for program in PROGRAMS:
        exec(compile(program, "docs/your-data.md", "exec"), {})


def test_the_sweep_file_lists_runs_on_own_data(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(text)
    cells = read_sweep(tmp_path / "sweep.yaml").cells()
    assert [(cell.config.dataset, cell.config.preset) for cell in cells] == 9 * [("people", "auto")]
    assert {cell.config.training.steps for cell in cells} == {0, 2000}
    assert all(f"`{key}`" in PAGE for key in OWN_KEYS if key not in ("label", "group"))


def test_the_table_of_options_is_complete() -> None:
    named = set(re.findall(r"\| `(--[a-z-]+)", PAGE))
    parser = make_parser()._subparsers._group_actions[0].choices["pretrain"]  # type: ignore[union-attr]
    group = next(g for g in parser._action_groups if g.title == "your own data, by path")
    assert named - {"--minutes"} == {action.option_strings[0] for action in group._group_actions}
    assert "`--as " + r"\|".join(KINDS) + "`" in PAGE
