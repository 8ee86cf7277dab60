"""What a table was taken for, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.own.columns import Column


def describe_table(
    recipe: dict[str, Any], cells: dict[str, Array], dropped: Sequence[Column]
) -> list[str]:
    """Lines on the kinds of columns, missing cells, what was left out, and heavy tails."""
    lines = []
    forms = {"number": 0, "date": 0, "level": 0}
    for form in forms:
        forms[form] = len({e["column"] for e in recipe["numbers"] if e["form"] == form})
    counts = {
        "of numbers": forms["number"],
        "of dates (as numbers)": forms["date"],
        "of categories (a number for every level)": forms["level"],
        "of categories": len(recipe["categories"]),
        "of sequences": len(recipe["sequences"]),
    }
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    missing = int(np.isnan(cells["row"]).sum()) if recipe["numbers"] else 0
    first = 0
    for place, entry in enumerate(recipe["categories"]):
        missing += int((cells["categories"][:, place] == first).sum())
        first += 2 + len(entry["levels"])
    rows = len(next(iter(cells.values())))
    lines.append(
        f"a table of {rows} rows; columns {', '.join(parts)}; {missing or 'no'} cells missing"
        + (" (part of the input; no value is filled in)" if missing else "")
    )
    if dropped:
        listed = ", ".join(f"{column.name!r} ({column.why})" for column in dropped[:8])
        more = f" and {len(dropped) - 8} more" if len(dropped) > 8 else ""
        lines.append(f"columns left out: {listed}{more}")
    bent = [entry["column"] for entry in recipe["numbers"] if entry["bent"]]
    if bent:
        lines.append(f"columns with heavy tails, on a logarithmic scale: {', '.join(bent[:8])}")
    return lines
