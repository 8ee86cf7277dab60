"""Result rows and the table: what is written reads back, and the numbers are the right ones."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metamae import DataError
from metamae.config.names import METHODS
from metamae.data.pocket import POCKET
from metamae.report.comparison import summarise_results
from metamae.report.figure import _several_steps
from metamae.report.rows import Result, read_results, write_results
from metamae.report.tables import summarise
from metamae.report.wording import LABELS, mean_and_spread
from tests import ROOT


def row(**values: Any) -> Result:
    given: dict[str, Any] = {
        "dataset": "sensors",
        "method": "mae",
        "seed": 0,
        "metric": "accuracy",
        "value": 0.5,
        "train_value": 0.7,
        "protocol": "published",
        "settings": "linear",
        "preset": "pocket",
        "steps": 100,
        "pretrain_seconds": 10.0,
        "probe_seconds": 1.0,
        "batch_size": 64,
        "device": "cpu",
        "hardware": "a processor",
        "torch": "2",
        "revision": "abc",
    }
    given |= values
    return Result(**({"transfer": given["dataset"], "probe_seed": given["seed"]} | given))


def test_rows_read_back_as_written(tmp_path: Path) -> None:
    rows = [row(seed=1, value=1 / 3), row(method="metamae", pretrain_seconds=0.125)]
    write_results(tmp_path / "new" / "results.json", rows)
    assert read_results(tmp_path / "new" / "results.json") == rows
    plain = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [set(line) for line in plain] == [
        {entry.name for entry in dataclasses.fields(Result)} - {"predictions"}
    ] * 2
    assert all(
        line[name] == getattr(row, name)
        for line, row in zip(plain, rows, strict=True)
        for name in line
    )
    assert rows[1].key == ("sensors", "sensors", "metamae", "default", 0, "published", 0)


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.json") == []


def test_a_row_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_results(file, [row()])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(file, [row(value=math.nan)])
    assert read_results(file) == [row()]


def refused(file: Path) -> None:
    with pytest.raises(DataError, match="got a damaged file") as caught:
        read_results(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "move it away" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[{", b"null", b"[1]", b'{"a": 1}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    refused(tmp_path / "results.json")


def test_a_row_with_missing_or_surplus_keys_is_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "results.json", dataclasses.asdict(row())
    for bad in ({k: v for k, v in whole.items() if k != "value"}, whole | {"loss": 1}):
        file.write_text(json.dumps([bad]))
        refused(file)


@pytest.mark.parametrize(
    "change",
    [{"value": "abc"}, {"value": None}, {"seed": "0"}, {"method": None}, {"dataset": 3}],
)
def test_a_row_with_a_wrong_value_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps([dataclasses.asdict(row()) | change]))
    refused(file)


def test_mean_and_spread() -> None:
    """In percent, with the sample deviation; none is claimed from one value."""
    assert mean_and_spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert mean_and_spread([0.1, 0.2]) == "15.0 ± 7.1"
    assert mean_and_spread([0.4, 0.4]) == "40.0 ± 0.0"
    assert mean_and_spread([0.8766]) == "87.7"


def cells(
    rows: list[Result], times: dict[str, dict[str, float]] | None = None
) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(line[0], line[1]): line[2:] for line in summarise(rows, times).lines}


def test_a_line_per_data_set_and_method() -> None:
    rows = [
        row(value=0.5),
        row(value=0.7, seed=1),
        row(method="random", steps=0, value=0.25),
        row(method="metamae", value=0.8),
        row(dataset="digits", metric="weighted_f1", steps=7),
    ]
    found = cells(rows, {"sensors": {"mae": 33.04, "metamae": 64.4}, "digits": {"metamae": 9.0}})
    assert found["sensors", LABELS["mae"]] == (
        "accuracy, %",
        "60.0 ± 14.1",
        *("2", "100", "33.0", "1.00"),
    )
    assert found["sensors", LABELS["metamae"]][-2:] == ("64.4", "1.95")
    assert found["sensors", LABELS["random"]] == ("accuracy, %", "25.0", "1", "0", "-", "-")
    assert found["digits", LABELS["mae"]] == ("weighted f1, %", "50.0", "1", "7", "-", "-")
    assert len(found) == 4


def test_without_times_none_are_shown() -> None:
    """Those of runs that shared a machine would be no comparison."""
    assert cells([row(), row(method="metamae")])["sensors", LABELS["metamae"]][-2:] == ("-", "-")
    assert summarise([row()]).notes == []
    assert "each method in turn" in summarise([row()], {"sensors": {"mae": 1.0}}).notes[0]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_every_cell_in_full(width: int) -> None:
    """At the 80 columns of a pipe or log too: names may be folded, nothing may be cut."""
    rows = [
        row(dataset=name, method=method, seed=seed, value=0.4 + 0.1 * seed)
        for name in POCKET
        for method in METHODS
        for seed in (0, 1)
    ]
    console = Console(file=io.StringIO(), width=width)
    times = {name: dict.fromkeys(METHODS, 123.4) for name in POCKET}
    summarise(rows, times).print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    count = len(POCKET) * len(METHODS)
    assert "…" not in text
    assert text.count("123.4") == text.count("1.00") == text.count("45.0") == count
    if width == 120:
        assert text.count("45.0 ± 7.1") == count
        assert all(text.count(name) == len(METHODS) for name in POCKET)


def test_steps_are_named_only_where_one_place_has_several() -> None:
    """Data sets trained for different numbers of steps share a colour for each method."""
    rows = read_results(ROOT / "benchmarks/results/pocket.json")
    assert len({row.steps for row in rows if row.method == "metamae"}) > 1
    assert not _several_steps(summarise_results(rows))
    longer = [*rows, replace(rows[-1], steps=rows[-1].steps + 1)]
    assert _several_steps(summarise_results(longer))
