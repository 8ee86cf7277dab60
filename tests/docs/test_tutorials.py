"""The tutorials: every command and program runs, on small data of the kinds they tell of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamae.cli import main as cli
from tests import ROOT
from tests.metamae.data.own.making import make_people, make_pictures, make_sounds
from tests.tiny import SIZES, as_options

PAGE = (ROOT / "docs" / "tutorials.md").read_text()
SECTIONS = dict(
    zip(("table", "signals", "pictures", "sounds"), PAGE.split("\n## ")[1:], strict=True)
)
SETTINGS = {
    "pretrain": ["--set", "training.batch_size=4", "--set", "training.steps=1"],
    "probe": ["--set", "probe.epochs=1"],
    "compare": ["--steps", "1", "--draws", "2", "--seeds", "1", "--workers", "1"],
}
FEW = ["--only", "raw_logistic", "mae"]


def run(line: str) -> int:
    program, command, *rest = shlex.split(line)
    assert program == "metamae"
    sizes = as_options(SIZES)
    small = SETTINGS.get(command, []) + (sizes if command in ("pretrain", "compare") else [])
    return cli.main([command, *rest, *small, *(FEW if command == "compare" else [])])


def make_data(kind: str) -> None:
    """What a section begins with."""
    here = Path()
    rng = np.random.default_rng(0)
    np.save("vibration.npy", rng.normal(size=(24, 3, 256)))
    np.save("state.npy", np.array(["ok", "worn", "broken"])[np.arange(24) % 3])
    if kind == "table":
        names = {"person": "who", "ill": "unfaithful"}
        make_people().rename(columns=names).to_csv("survey.csv", index=False)
    elif kind == "pictures":
        make_pictures(here / "digits", each=8)
    elif kind == "sounds":
        make_sounds(here / "sounds")


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_tutorial_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "sounds":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    make_data(kind)
    section = SECTIONS[kind]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    lines = [line for line in lines if line]
    assert 1 <= len(lines) <= 4
    for line in lines:
        assert run(line) == 0, capsys.readouterr().err
        written = re.search(r"--out (\S+)", line)
        assert written is None or Path(written[1]).exists()
    names: dict[str, Any] = {"np": np}
    for program in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        assert sum(bool(text) for text in program.splitlines()) <= 5
        exec(compile(program.replace("minutes=1", "steps=1"), "tutorials.md", "exec"), names)
    assert np.isfinite(names.get("z", names.get("features", np.zeros(1)))).all()


def test_its_outputs_are_still_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word but for numbers, where a command is cheap enough to be compared."""
    monkeypatch.chdir(tmp_path)
    make_data("sounds")
    assert run("metamae pretrain sounds --out run-sounds") == 0
    (shown,) = re.findall(r"```text\n(.*?)\n", SECTIONS["sounds"], re.DOTALL)
    said = " ".join(capsys.readouterr().out.split())
    assert re.sub(r"\d+", "N", shown) in re.sub(r"\d+", "N", said)


def test_pictures_are_small() -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).stat().st_size < 150_000 for link in links)
