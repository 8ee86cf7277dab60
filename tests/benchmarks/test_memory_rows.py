"""The committed rows of memory: every setting is there, and the goal that they answer."""

from __future__ import annotations

import json
import statistics

from tests import ROOT

ROWS = json.loads((ROOT / "benchmarks" / "results" / "memory-cpu.json").read_text())


def test_an_exact_step_keeps_at_most_the_goal_on_average() -> None:
    """Over the nine settings of Table 8, as the guide says."""
    steps = [row for row in ROWS["rows"] if row["part"] == "step"]
    assert len(steps) == 9
    for name in ("kept", "unrolled", "checkpointed"):
        mean = round(statistics.mean(row[f"{name}_ratio"] for row in steps), 3)
        assert ROWS["means"][0][f"{name}_ratio"] == mean
        for row in steps:
            assert row[f"{name}_ratio"] == round(row[f"{name}_mib"] / row["mae_mib"], 3)
    assert ROWS["means"][0]["unrolled_ratio"] <= ROWS["goal"] < ROWS["means"][0]["kept_ratio"]


def test_the_guide_shows_the_committed_peaks() -> None:
    page = (ROOT / "docs" / "measurements.md").read_text()
    for row in ROWS["rows"]:
        name = row["setting"].removeprefix("paper/").removesuffix(" tokens")
        if row["part"] == "step":
            peaks = [row[f"{side}_mib"] for side in ("mae", "kept", "unrolled", "checkpointed")]
            assert f"| {name} | {' | '.join(f'{peak:.0f}' for peak in peaks)} | " in page
        elif row["part"] == "attention":
            cells = (
                f"{row['time_ratio']:.2f} | {row['plain_mib']:.0f} | {row['recomputed_mib']:.0f}"
            )
            assert f"| {name} | {cells} | {row['fused_mib']:.0f} |" in page
