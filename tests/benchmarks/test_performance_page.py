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


def test_the_tables_of_a_step_hold_the_committed_rows() -> None:
    """Compiled steps setting by setting, and the means of all variants."""
    page = (ROOT / "docs" / "performance.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "overhead-cpu.json").read_text())
    modes = ("compiled", "self")
    compiled = [row for row in found["rows"] if (row["mode"], row["decoder"]) == modes]
    assert len(compiled) == 9
    for row in compiled:
        name = row["setting"].removeprefix("paper/")
        times = f"{row['mae_ms']:.0f} | {row['metamae_ms']:.0f} | {row['ratio']:.2f}"
        straight = f"{row['straight_ms']:.0f} | {row['speedup']:.2f}"
        line = f"| {name} | {row['batch']} | {times} | {row['flop_ratio']:.2f} | {straight} |"
        assert line in page
    for mean in found["means"]:
        faster = f"{mean['speedup']:.2f}" if "speedup" in mean else "-"
        numbers = f"{mean['ratio']:.2f} | {mean['flop_ratio']:.2f} | {mean['peak_ratio']:.2f}"
        assert f"| `{mean['variant']}` | {mean['settings']} | {numbers} | {faster} |" in page
