"""The page on extending: its programs run from outside, and are as short as promised."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from metamae import Config, ConfigError, build_method, load_dataset
from metamae.config import METHODS, known_methods, names
from metamae.experiments.plan import Source, Sweep
from metamae.methods import building, register_method
from tests import ROOT
from tests.docs.running import run_program

PAGE = (ROOT / "docs" / "extending.md").read_text()
PROGRAMS = dict(
    zip(
        ("method", "modality"),
        re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL),
        strict=True,
    )
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_and_is_short(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    assert sum(bool(line.strip()) for line in program.splitlines()) < 40
    last = run_program(program, tmp_path).splitlines()[-1]
    if name == "modality":
        assert last == "torch.Size([2, 96])"
    else:
        assert "value=0." in last


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(names, "_registered", [])
    monkeypatch.setattr(building, "_registered", {})


@pytest.mark.usefixtures("registered")
def test_a_registered_method_is_known_everywhere() -> None:
    sensors = load_dataset("sensors")
    with pytest.raises(ConfigError, match=r"expected a method among random, .*, got 'mine'"):
        Config(dataset="sensors", method="mine")
    register_method("mine", lambda config, inputs, task: (config.method, inputs, task))  # type: ignore[arg-type, return-value]
    assert known_methods() == (*METHODS, "mine")
    config = Config(dataset="sensors", method="mine")
    assert build_method(config, sensors.inputs, sensors.task) == (
        "mine",
        sensors.inputs,
        sensors.task,
    )
    (cell,) = Sweep(datasets={"sensors": Source()}, methods=("mine",), seeds=(0,)).cells()
    assert cell.config.method == "mine"
    register_method("mine", lambda config, inputs, task: "again")  # type: ignore[arg-type, return-value]
    assert build_method(config, sensors.inputs) == "again"
    assert known_methods().count("mine") == 1


@pytest.mark.usefixtures("registered")
def test_the_name_of_a_method_of_the_package_is_taken() -> None:
    with pytest.raises(ConfigError, match="got 'mae', which is taken"):
        register_method("mae", lambda config, inputs, task: None)  # type: ignore[arg-type, return-value]


@pytest.mark.usefixtures("registered")
def test_an_entry_point_is_asked_for_an_unknown_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "their_method.py").write_text(
        "from metamae.methods import register_method\n"
        "register_method('theirs', lambda config, inputs, task: 'built')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [EntryPoint("theirs", "their_method", "metamae.methods")]
    monkeypatch.setattr(
        names, "entry_points", lambda group: found if group == "metamae.methods" else []
    )
    config = Config(dataset="sensors", method="theirs")
    assert build_method(config, load_dataset("sensors").inputs) == "built"
