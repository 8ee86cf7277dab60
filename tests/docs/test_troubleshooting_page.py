"""The page on errors shows what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from metamae.cli import main as cli
from tests import ROOT
from tests.tiny import SIZES, as_options

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PAIRS = re.findall(r"```sh\n(metamae [^\n]+)\n```\n\n```text\n(error: [^\n]+)\n```", PAGE)
SETTINGS = as_options((*SIZES, "training.steps=1", "training.batch_size=4"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, another, an array with gaps, and a run."""
    folder = tmp_path_factory.mktemp("troubles")
    rng = np.random.default_rng(0)
    rows = [
        f"{n},{n % 2},{rng.normal():.3f},{rng.normal():.3f},{'xyz'[rng.integers(3)]}"
        for n in range(30)
    ]
    (folder / "people.csv").write_text("\n".join(["person,ill,a,b,c", *rows, ""]))
    cut = [",".join(part for n, part in enumerate(row.split(",")) if n != 3) for row in rows]
    (folder / "other.csv").write_text("\n".join(["person,ill,a,c", *cut, ""]))
    np.save(folder / "nan.npy", np.full((30, 6, 32), np.nan))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = "pretrain people.csv --label ill --id person --out run"
        assert cli.main([*line.split(), *SETTINGS]) == 0
    return folder


@pytest.mark.parametrize(("command", "error"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_the_error_is_the_one_shown(
    command: str,
    error: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(folder)
    settings = SETTINGS if "people.csv" in command and "pretrain" in command else []
    assert cli.main([*shlex.split(command)[1:], *settings]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_ten_are_shown() -> None:
    assert len(PAIRS) == 10
