"""Result files whose rows are measured one at a time, and what every row says of its origin."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metamae.training.provenance import revision

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
Row = dict[str, Any]


def merged(
    path: Path, new: Sequence[Row], key: Sequence[str], place: Callable[[Row], Any]
) -> list[Row]:
    """Rows of a result file with ``new`` ones instead of those of the same key, in their order."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    measured = {tuple(row[k] for k in key) for row in new}
    kept = [row for row in rows if tuple(row[k] for k in key) not in measured]
    return sorted([*kept, *new], key=place)


def origin() -> Row:
    """Threads, torch, date and revision of a row that is measured now."""
    return {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": revision(),
    }


def hardware_of(rows: Sequence[Row]) -> str:
    """Every machine that rows were measured on, for a heading."""
    return "; ".join(dict.fromkeys(row["hardware"] for row in rows))
