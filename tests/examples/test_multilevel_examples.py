"""The examples of multilevel optimisation make their point, in a short run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.multilevel.bridge import INSTALL_COMMAND
from tests import ROOT
from tests.examples.running import numbers_after, run_example

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_reweighting_finds_the_wrong_labels(tmp_path: Path) -> None:
    """After a fifth of the default steps already; chance is one half."""
    text = run_example("data_reweighting.py", "--steps", "400", "--out", "out", folder=tmp_path)
    (separation,) = numbers_after(text, "outweighs a wrong one with probability:")
    (right,), (wrong,) = (
        numbers_after(text, f"mean weight of {k} labels:") for k in ("right", "wrong")
    )
    assert separation > 0.75
    assert right > wrong + 0.15
    assert is_picture(tmp_path / "out" / "weights.png")


@pytest.mark.slow
def test_metamae_moves_its_settings_towards_each_other(tmp_path: Path) -> None:
    """From starts far apart: the gap between the mask ratios narrows."""
    text = run_example(*("bilevel_metamae.py", "--steps", "60", "--out", "out"), folder=tmp_path)
    low_start, low_end, high_start, high_end = numbers_after(text, "mask_ratio: low start")
    assert (low_start, high_start) == (0.3, 0.7)
    assert high_end - low_end < high_start - low_start - 0.02
    assert is_picture(tmp_path / "out" / "settings.png")


@pytest.mark.slow
def test_the_learn_flag_leaves_values_and_a_picture(tmp_path: Path) -> None:
    """`--learn` on the main example, with a small model."""
    small = [
        *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "decoder.width=16"),
        *("decoder.depth=1", "decoder.heads=2", "contrast.hidden=16", "contrast.out=8"),
        *("training.batch_size=16", "learn.warmup_steps=2", "probe.epochs=2"),
    ]
    flags = [flag for override in small for flag in ("--set", override)]
    run_example(
        *("metamae_dabs.py", "--dataset", "digits", "--steps", "12", "--seeds", "1"),
        *("--out", "out", "--methods", "metamae", "--device", "cpu"),
        *("--learn", "step_size,mask_ratio", *flags),
        folder=tmp_path,
    )
    learned = json.loads((tmp_path / "out/digits/default/metamae/seed-0/learned.json").read_text())
    assert set(learned["learned"]) == {"step_size", "mask_ratio"}
    assert learned["learned"]["step_size"] != pytest.approx(learned["start"]["step_size"], rel=1e-3)
    assert is_picture(tmp_path / "out" / "settings.png")


@pytest.mark.slow
def test_few_steps_work_or_the_least_is_said(tmp_path: Path) -> None:
    """Before the first outer step there is nothing to tell; other data may have fewer rows."""
    command = [sys.executable, str(ROOT / "examples" / "bilevel_metamae.py"), "--steps", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected --steps 22 or more, got 20: ")
    assert done.stderr.count("\n") == 1
    flags = ("--steps", "22", "--dataset", "basic_motions", "--out", "out")
    text = run_example("bilevel_metamae.py", *flags, folder=tmp_path)
    assert numbers_after(text, "reference loss at the end: low start")


@pytest.mark.parametrize("steps", ["-5", pytest.param("x", marks=pytest.mark.slow)])
def test_no_steps_are_refused(steps: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "data_reweighting.py"), "--steps", steps]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--steps" in done.stderr.splitlines()[-1]
