"""Shell completion."""

from __future__ import annotations

import sys

import pytest

from metamae.cli.completion import SHELLS
from metamae.cli.main import main, make_parser


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_of_a_shell_is_printed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("metamae", "pretrain", "embed", "--print-completion"):
        assert word in text


def test_paths_are_completed_by_files(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    text = capsys.readouterr().out
    assert "_metamae_embed_pos_0_COMPGEN=_shtab_compgen_files" in text
    assert "_metamae_pretrain___out_COMPGEN=_shtab_compgen_files" in text
    assert "_metamae_pretrain___seed_COMPGEN" not in text


def test_without_its_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    assert stop.value.code == 2
    assert "pip install 'metamae[completion]'" in capsys.readouterr().err
    make_parser()  # all else works
