"""Result files of the benchmarks: rows are replaced by key, others stay, and all are in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.loading import load_program

rows = load_program("rows")


def row(axis: str, value: int, ms: float) -> dict[str, Any]:
    return {"axis": axis, "value": value, "ms": ms, "hardware": f"machine {value % 2}"}


def test_new_rows_take_the_place_of_those_with_their_key(tmp_path: Path) -> None:
    path, order = tmp_path / "x.json", ["batch", "depth"]

    def place(one: dict[str, Any]) -> int:
        return order.index(one["axis"])

    first = [row("depth", 1, 10), row("depth", 2, 20)]
    assert rows.merged(path, first, ("axis",), place) == first
    path.write_text(json.dumps({"rows": first}))
    batch = row("batch", 8, 5)
    assert rows.merged(path, [batch], ("axis",), place) == [batch, *first]
    again = row("depth", 2, 21)
    assert rows.merged(path, [again], ("axis", "value"), place) == [first[0], again]
    assert rows.merged(path, [again], ("axis",), place) == [again]  # the whole axis anew


def test_a_heading_names_every_machine_once() -> None:
    assert rows.hardware_of([row("a", n, 0) for n in (0, 1, 2)]) == "machine 0; machine 1"
