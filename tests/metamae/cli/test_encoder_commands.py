"""``metamae embed``, ``reconstruct`` and ``export``."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from metamae import load_dataset
from metamae.artefact import load
from metamae.cli.main import main
from tests.metamae.artefact.making import config_of as config_of
from tests.metamae.artefact.making import train, untrained

MOTIONS = load_dataset("basic_motions")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("basic_motions", tmp_path_factory.mktemp("commands") / "run")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder of a table, and the table."""
    pandas = pytest.importorskip("pandas")
    from metamae.data.own import open_data

    folder = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame({name: draw.normal(size=30) for name in ("a", "b", "c")})
    frame["who"] = [f"ü, {n}" for n in range(30)][::-1]
    frame["y"] = draw.choice(["no", "yes"], 30)
    frame.to_csv(folder / "rows.csv", index=False)
    data = open_data(folder / "rows.csv", label="y", ids="who").dataset
    untrained(data, config_of("tabular")).save(folder / "saved")
    return folder


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def test_embeddings_of_a_table_keep_ids_and_order(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(table / "saved"), str(table / "rows.csv"), "--id", "who"]
    assert main([*arguments, "--label", "y", "--out", str(tmp_path / "z.csv")]) == 0
    header, rows = read(tmp_path / "z.csv")
    _, originals = read(table / "rows.csv")
    assert header == ["id", "label", *(f"f{n}" for n in range(16))]
    assert [row[:2] for row in rows] == [row[-2:] for row in originals]
    found = np.asarray([row[2:] for row in rows], np.float32)
    expected = load(table / "saved").embed(table / "rows.csv")
    assert np.array_equal(found, expected), "every number to its last bit"
    assert "30 rows of 16 numbers in" in capsys.readouterr().out
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert main([*arguments, "--out", str(tmp_path / "z.parquet")]) == 0
    stored = pyarrow.read_table(tmp_path / "z.parquet").to_pydict()
    assert stored.pop("id") == [row[0] for row in rows]
    assert np.array_equal(np.float32(list(stored.values())).T, expected)


def test_embeddings_of_a_set_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "z.npy"
    arguments = ["embed", str(run), "basic_motions", "--out", str(out)]
    assert main([*arguments, "--batch-size", "7"]) == 0
    assert "basic_motions: 40 rows of its test part" in capsys.readouterr().out
    test = load(run).embed(MOTIONS.need("test"))
    np.testing.assert_allclose(np.load(out), test, atol=1e-5)
    assert main([*arguments, "--part", "train"]) == 0
    assert np.array_equal(np.load(out), load(run).embed(MOTIONS.need("train")))
    assert [path.name for path in out.parent.iterdir()] == ["z.npy"]


def test_embeddings_of_tokens_have_three_axes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(run), "basic_motions", "--tokens", "--out"]
    assert main([*arguments, str(tmp_path / "t.npy")]) == 0
    tokens = np.load(tmp_path / "t.npy")
    assert tokens.shape == (40, 25, 16)
    assert "40 rows of 25 x 16 numbers in" in capsys.readouterr().out
    whole = load(run).embed(MOTIONS.need("test"))
    np.testing.assert_allclose(tokens.mean(1), whole, atol=1e-5)
    assert main([*arguments, str(tmp_path / "t.csv")]) == 2
    assert "expected a file ending in .npy for --tokens" in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()


def test_a_picture_of_reconstructions(run: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    out = tmp_path / "x.png"
    arguments = ["reconstruct", str(run), "basic_motions", "--out", str(out), "--examples", "2"]
    assert main(arguments) == 0
    assert imread(out)[..., :3].std() > 0.02
    first = out.read_bytes()
    assert main([*arguments, "--seed", "1"]) == 0
    assert out.read_bytes() != first


def test_a_table_with_gaps_is_drawn(tmp_path: Path) -> None:
    """A cell that is missing is no limit of an axis."""
    pandas = pytest.importorskip("pandas")
    from metamae.data.own import open_data

    values = np.random.default_rng(0).normal(size=(30, 4))
    values[::2, 1] = np.nan
    pandas.DataFrame(values, columns=list("abcd")).to_csv(tmp_path / "rows.csv", index=False)
    untrained(open_data(tmp_path / "rows.csv").dataset, config_of("tabular")).save(tmp_path / "run")
    out = tmp_path / "x.svg"
    command = ["reconstruct", str(tmp_path / "run"), str(tmp_path / "rows.csv"), "--out", str(out)]
    assert main(command) == 0
    assert "<svg" in out.read_text()


def test_an_export_says_what_it_takes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--tokens", "--out", str(tmp_path / "e.pt2")]) == 0
    said = capsys.readouterr().out
    assert "signal float32 (batch, 6, 100) -> tokens float32 (batch, 25, 16)" in said
    assert "checked against the encoder with batches of 1, 2 and 7" in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed RUN basic_motions --out z.txt", "ending in .npy, .csv, .parquet for embeddings"),
        ("embed nowhere basic_motions --out z.npy", "expected a run folder with checkpoint.pt"),
        ("embed RUN nothing --out z.npy", "nothing"),
        ("embed RUN no.npy --out z.npy", "no.npy"),
        ("embed RUN digits --out z.npy", "which the encoder was trained on, got others"),
        ("embed RUN basic_motions --label y --out z.npy", "expected --label with a path"),
        ("embed RUN x.npy --part test --out z.npy", "expected --part with a data set by name"),
        ("embed RUN basic_motions --batch-size 0 --out z.npy", "a batch size of 1 or more, got 0"),
        ("reconstruct RUN basic_motions --out x.gif", "a picture ending in .png, .svg, .pdf"),
        ("reconstruct RUN basic_motions --examples 0 --out x.png", "at least 1 example, got 0"),
        ("export RUN --out program", "expected --format torch or onnx, or a file ending in"),
        ("export RUN --format tf --out e.pt2", "invalid choice: 'tf'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    command: str,
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(run) if word == "RUN" else word for word in command.split()]
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_pretraining_logs_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    settings = [part for s in ("training.steps=1", "encoder.depth=1") for part in ("--set", s)]
    arguments = ["pretrain", "basic_motions", "--out", str(out), *settings]
    assert main([*arguments, "--log", "board"]) == 2
    assert "expected loggers among tensorboard, wandb, mlflow" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--log", "tensorboard"]) == 0
    assert any((out / "tensorboard").iterdir())
