"""The page on embeddings: its blocks run one after the other, and give what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from metamae import make_config
from metamae.cli.main import make_parser
from metamae.training.run_folder import CHECKPOINT
from tests import ROOT
from tests.tiny import SIZES

PAGE = (ROOT / "docs" / "embeddings.md").read_text()


def test_the_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a small encoder: only the sizes differ from the page's."""
    for library in ("onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)

    def small(name: str, overrides: list[str]) -> Any:
        return make_config(name, overrides=[*SIZES, "training.batch_size=20", *overrides])

    monkeypatch.setattr("metamae.make_config", small)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "embeddings.md", "exec"), names)  # our own text
    assert names["z"].shape == (10, 16)
    assert names["tokens"].shape == (10, 32, 16)
    assert names["masked"].values["signal"].shape == (10, 6, 128)
    assert names["masked"].masked["signal"].shape == (10, 32)
    assert names["logits"].shape == (10, 7)
    assert names["patches"].shape == (10, 32, 16)
    assert "saved runs/again/checkpoint.pt" in capsys.readouterr().out
    there = {path.name for path in (tmp_path / "runs" / "again").iterdir()}
    table = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.M) for name in row.split("`")}
    assert there <= table
    assert CHECKPOINT in there


def test_the_commands_are_known() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    for line in "".join(blocks).splitlines():
        make_parser().parse_args(line.partition("#")[0].split()[1:])
