"""The performance guide shows the committed numbers."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("mae", "unrolled", "checkpointed", "chunked")


def test_the_memory_table_holds_the_committed_rows() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "policy-memory.json").read_text())
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if "%) |" in line]
    assert len(table) == len(found["rows"])
    for cells, row in zip(table, found["rows"], strict=True):
        assert cells[0].lower() == row["setting"].removeprefix("paper/")
        assert cells[1:5] == [f"{row['peak_mib'][name]:.0f}" for name in COLUMNS]
        assert cells[5:] == [
            f"{row[kind]['faults']:,.0f} ({100 * row[kind]['system_share']:.1f} %)"
            for kind in ("returned", "kept")
        ]
