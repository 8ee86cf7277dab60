"""Rows as a terminal table and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Rows = Sequence[Mapping[str, Any]]


def terminal(title: str, rows: Rows) -> str:
    """A table for the terminal; one row alone is shown as a list."""
    table = Table(title=title, title_justify="left")
    if len(rows) == 1:
        table.add_column("column")
        table.add_column("value", justify="right")
        for column, value in rows[0].items():
            table.add_row(column, str(value))
    else:
        for column, value in rows[0].items():
            table.add_column(column, justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*map(str, row.values()))
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return text.getvalue()


def markdown(title: str, notes: str, parts: Sequence[tuple[str, Rows]]) -> str:
    """A page with a table per part."""
    lines = [f"# {title}", "", notes]
    for heading, rows in parts:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = [all(isinstance(row.get(c, ""), str) for row in rows) for c in columns]
        bars = ["---" if plain else "---:" for plain in text]
        lines += ["", f"## {heading}", "", f"| {' | '.join(columns)} |", f"| {' | '.join(bars)} |"]
        lines += [f"| {' | '.join(_cell(row.get(c)) for c in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
