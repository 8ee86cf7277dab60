"""``metamae pretrain`` and ``probe`` with a path in place of a name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from metamae.report.rows import read_results
from metamae.training.run_folder import read_record
from tests.metamae.cli.running import Command, in_process, refused
from tests.metamae.data.own.making import make_people, make_pictures, make_signals, make_sounds
from tests.tiny import SIZES, as_options

TINY = [*SIZES, "probe.epochs=2", "training.steps=2", "training.batch_size=4"]
SETTINGS = as_options(TINY)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the command in a folder with own data of every kind, in this process."""
    monkeypatch.chdir(tmp_path)
    make_people().to_csv("people.csv", index=False)
    np.save("signals.npy", make_signals()["x"])
    np.save("labels.npy", make_signals()["y"])
    make_pictures(tmp_path / "pets")
    make_sounds(tmp_path / "tones")

    def run(*arguments: str) -> SimpleNamespace:
        done = in_process(capsys)(*arguments)
        return SimpleNamespace(code=done.code, out=done.out.replace("\n", " "), err=done.err)

    return run


OWN = {
    "people": ["people.csv", "--label", "ill", "--id", "person", "--drop", "site"],
    "signals": ["signals.npy", "--label", "labels.npy", "--token-size", "8"],
    "pets": ["pets"],
    "tones": ["./tones"],
}


@pytest.mark.parametrize("name", OWN)
def test_a_path_is_trained_on_and_probed(name: str, command: Command) -> None:
    done = command("pretrain", *OWN[name], *SETTINGS)
    assert done.code == 0, done.err
    folder = Path("runs") / name / "metamae" / "seed-0"
    assert f"{folder} on " in done.out
    assert "preset auto: 2 steps of 4 rows" in done.out
    assert done.out.index("split: ") < done.out.index("2 steps in"), "remarks come first"
    record = read_record(folder)
    assert record.config.dataset == name
    assert record.description.recipe["format"] == 1
    following = done.out.split("next: metamae ")[1].split()
    assert following[:2] == ["probe", str(folder)]
    probed = command(*following)
    assert probed.code == 0, probed.err
    assert "warning" not in probed.out
    (row,) = read_results(folder / "probes.json")
    assert (row.dataset, row.transfer) == (name, name)
    again = command("pretrain", *OWN[name], *SETTINGS)
    refused(again, "holds a checkpoint; add --resume")


def test_a_resumed_run_keeps_the_steps_that_were_timed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamae.training.auto.seconds_a_step", lambda *_: 0.005)
    settings = as_options(SIZES)
    run = ["pretrain", "signals.npy", "--out", "run", *settings]
    done = command(*run, "--minutes", "0.0018")
    assert "preset auto: 21 steps" in done.out, done.err
    monkeypatch.setattr("metamae.training.auto.seconds_a_step", lambda *_: 0.001)
    assert "21 steps in" in command(*run, "--resume").out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["training"]["steps"] == 21
    np.save("signals.npy", make_signals(seed=1)["x"])
    refused(command(*run, "--resume"), "expected the data 'signals'")


def test_a_probe_says_where_test_rows_were_seen(command: Command) -> None:
    assert command("pretrain", "signals.npy", "--out", "run", *SETTINGS).code == 0
    done = command("probe", "run", "--on", "signals.npy", "--label", "labels.npy")
    assert done.code == 0, done.err
    assert "warning: the run was trained without this label" in done.out
    refused(command("probe", "run"), "add --on DATA")
    refused(command("probe", "run", "--on", "signals.npy"), "add --label NAME")
    refused(command("probe", "run", "--on", "people.csv", "--label", "ill"), "expected arrays")
    refused(command("probe", "run", "--on", "signals.npy", "--as", "image"), "expected no --as")


def test_the_preset_auto_serves_sets_by_name(command: Command) -> None:
    done = command("pretrain", "basic_motions", "--preset", "auto", "--out", "run", *SETTINGS)
    assert done.code == 0, done.err
    assert command("probe", "run").code == 0


BAD = [
    (["sensors", "--label", "x"], "expected --label with a path", "the data set 'sensors'"),
    (["sensrs"], "or a path to your own data: .csv", "did you mean 'sensors'"),
    (["none.csv"], "expected a file or a folder at .", "got 'none.csv'"),
    (["people.csv", "--label", "il"], "did you mean 'ill'"),
    (["people.csv", "--preset", "pocket"], "expected --preset auto"),
    (["sensors", "--minutes", "3"], "expected --minutes with --preset auto"),
    (["signals.npy", "--token-size", "a"], "expected --token-size as a whole number or two"),
    (["signals.npy", "--set", "token_size=4"], "expected --token-size for own data"),
    (["signals.npy", "--set", "encoder.widht=4"], "did you mean 'width'"),
    (["signals.npy", "--method", "metame"], "did you mean 'metamae'"),
    (["pets", "--drop", "x"], "expected nothing to drop from a folder"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: " ".join(case[0]))
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    case: tuple[list[str], str, str], command: Command
) -> None:
    arguments, *expected = case
    refused(command("pretrain", *arguments), *expected)
    assert not list(Path().rglob("config.yaml"))


def test_a_folder_that_a_data_set_is_named_like_is_pointed_out(command: Command) -> None:
    make_pictures(Path("digits"))
    done = command("pretrain", "digits", "--out", "run", "--set", "training.steps=1")
    assert done.code == 0, done.err
    assert "digits: the data set of that name; for the file or folder here, write ./digits" in (
        done.out
    )


def test_a_comparison_without_a_label_is_refused(command: Command) -> None:
    refused(
        command("compare", "people.csv", "--out", "c"),
        "expected a label to compare by for people.csv, got none; add --label NAME",
    )
    assert not Path("c").exists()


def test_a_file_that_numpy_did_not_write_is_no_array_of_objects(command: Command) -> None:
    Path("text.npy").write_text("1 2 3")
    done = command("pretrain", "text.npy")
    refused(done, "expected arrays in text.npy, got a file that NumPy did not write")


def test_an_empty_folder_is_neither_pictures_nor_sounds(command: Command) -> None:
    Path("void").mkdir()
    refused(command("pretrain", "void"), "expected pictures (.png", "or sounds (.wav, .flac)")
