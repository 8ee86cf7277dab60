"""The guide to the policies tells the truth: its numbers are those that were measured."""

from __future__ import annotations

import json
import re

from tests import ROOT

GUIDE = (ROOT / "docs" / "adapter.md").read_text()
MEASURED = (ROOT / "benchmarks" / "results" / "adapter-cpu.md").read_text()


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(title: str) -> list[list[str]]:
    """Rows of one measured table."""
    text = MEASURED.split(f"## {title}\n")[1].split("\n## ")[0]
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_costs_holds_the_measured_numbers() -> None:
    """Every policy's error, time and memory."""
    text = GUIDE.split("## What each costs")[1].split("\n## ")[0]
    shown = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    assert len(shown) == 6
    memory = {row[0]: row for row in section("Peak MiB against steps: decoder")}
    for name, *numbers in shown:
        policy = re.sub(r"\(\)|\(\.\.\.\)|`", "", name)
        one, five = (
            next(
                row
                for row in section(f"One meta-gradient: decoder, steps={steps}")
                if row[:2] == ["metalearn", policy]
            )
            for steps in (1, 5)
        )
        expected = [one[6], five[6], one[3], five[3], *(memory[policy][i] for i in (1, 3, 5))]
        assert numbers == expected
    compiled = section("Compiled against eager: decoder, Unrolled")
    for value in (*(row[i] for row in compiled[-2:] for i in (2, 4)), compiled[-1][6]):
        assert value in GUIDE


def test_what_it_costs_beside_code_by_hand_is_what_was_measured() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "adapter-hand-cpu.json").read_text())
    results = (ROOT / "docs" / "results.md").read_text()
    names = {"mlp": "small perceptron, 16 tasks", "decoder": "MetaMAE's decoder, 64 tasks"}
    assert len(rows["rows"]) == 4
    for row in rows["rows"]:
        times = f"{row['hand_ms']:.2f} | {row['ours_ms']:.2f} | {row['ratio']:.2f}"
        assert f"| {names[row['task']]} | {row['steps']} | {times} |" in results
        assert (row["ratio"] > 1.05) == ((row["task"], row["steps"]) == ("mlp", 1))


def test_links_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE)
    assert len(links) == 2
    assert all((ROOT / "docs" / link).exists() for link in links)
