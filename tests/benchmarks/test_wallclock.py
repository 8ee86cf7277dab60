"""The wall-clock benchmark's arithmetic, on curves whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.benchmarks.loading import load_program

wallclock = load_program("wallclock")
ACCURACY = {
    "mae": [(0.5, 0.5), (0.7, 0.9), (0.6, 0.8)],
    "metamae": [(0.5, 0.5), (0.6, 0.8), (1, 1)],
}


def rows() -> list[dict[str, Any]]:
    """Two seeds; MAE's best mean is 80 % after 10 s, which MetaMAE passes between 7 and 21 s."""
    return [
        {"dataset": "toy", "method": method, "seed": seed, "steps": steps, "metric": "accuracy"}
        | {"value": value, "seconds": each * steps + seed, "cpu_seconds": 2 * each * steps}
        for method, each, counts in (("mae", 1.0, (0, 9, 16)), ("metamae", 2.0, (0, 3, 10)))
        for steps, values in zip(counts, ACCURACY[method], strict=True)
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([50, 60, 80], 70, (20.0, 2)),  # half of the way from 10 to 30 s
        ([50, 60, 80], 60, (10.0, 2)),  # equal is not above: it rises from there
        ([50, 75, 60], 70, (8.0, 1)),  # the first time, though it falls again
        ([50, 40, 60], 50, (20.0, 2)),  # touches the level at its start, falls, and comes back
        ([50, 60, 80], 40, (0.0, 0)),  # above from the start
        ([50, 60, 80], 80, None),
    ],
)
def test_the_time_of_passing(
    values: list[float], level: float, expected: tuple[float, int] | None
) -> None:
    assert wallclock.passing_time([0.0, 10.0, 30.0], values, level) == expected


def test_the_summary_is_of_means_over_seeds() -> None:
    found = wallclock.summarise(rows(), "toy", "wall")
    assert (found["seeds"], found["untrained"]) == (2, 50.0)
    assert (found["mae_best"], found["mae_best_steps"], found["mae_best_s"]) == (80.0, 9, 9.5)
    # MetaMAE's mean is 70 % after 6.5 s and 100 % after 20.5 s: a third of the way is left.
    assert found["metamae_passes_s"] == pytest.approx(6.5 + 14 / 3, abs=0.01)
    assert (found["points_above"], found["points_from_there"]) == (1, 1)
    assert (found["mae_last"], found["metamae_last"], found["metamae_last_spread"]) == (70, 100, 0)
    assert found["mae_last_spread"] == pytest.approx(100 * 0.2 / 2**0.5, abs=0.01)
    assert wallclock.summarise(rows(), "toy", "cpu")["mae_best_s"] == 18.0


def test_a_curve_that_never_passes_says_for_how_long() -> None:
    slow = [row | {"value": 0.5} if row["method"] == "metamae" else row for row in rows()]
    found = wallclock.summarise(slow, "toy", "wall")
    assert found["metamae_passes_s"] is None
    assert wallclock.shown(found)["metamae_passes_s"] == "not within 20.5 s"


def test_both_methods_are_probed_at_the_same_shares() -> None:
    assert wallclock.points("metamae", 320) == [0, 10, 16, 27, 44, 72, 119, 195, 320]
    assert wallclock.points("mae", 320) == [0, 16, 26, 44, 71, 116, 191, 312, 512]
    assert wallclock.points("metamae", 2) == [0, 1, 2]
    assert wallclock.points("mae", 2) == [0, 2, 4]


def test_the_figure_marks_the_time_of_passing(tmp_path: Path) -> None:
    axis = Figure().subplots()
    wallclock.draw_panel(axis, rows(), "toy", "wall")
    mae, metamae, level, moment = (line.get_xydata().tolist() for line in axis.lines)
    assert mae == [[0.5, 50], [9.5, 80], [16.5, 70]]
    assert metamae == [[0.5, 50], [6.5, 70], [20.5, 100]]
    assert (level[0][1], moment[0][0]) == (80, 11.17)
    assert axis.get_title().endswith("MetaMAE passes MAE's best,\n80.0 %, at 11.17 s")
    wallclock.draw(rows(), "cpu", tmp_path / "wallclock.png")
    assert (tmp_path / "wallclock.png").read_bytes().startswith(b"\x89PNG")
