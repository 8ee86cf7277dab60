"""``metamae report``: result rows beside the paper's numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from metamae.cli.terminal import make_console
from metamae.config.names import check_method
from metamae.files import write_text
from metamae.report.differences import draw_differences
from metamae.report.figure import draw_report
from metamae.report.reconstructions import check_picture
from metamae.report.rows import (
    all_results,
    find_results,
    has_results,
    mixed_data,
    write_results,
)
from metamae.report.run_page import find_runs, write_run_page
from metamae.report.tables import make_report


def add_report(commands: Any) -> None:
    """Add ``metamae report``."""
    parser = commands.add_parser(
        "report",
        help="print results beside the paper's numbers",
        description="Print the results of sweeps, probes and the demo beside the paper's numbers: "
        "mean and deviation over seeds, and paired differences of two methods.",
    )
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="RUNS", help="folders with results, or result files")
    add("--method", default="metamae", metavar="M", help="method of the paired differences")
    add("--against", default="mae", metavar="M", help="what it is compared with (default: mae)")
    add("--markdown", type=Path, metavar="FILE", help="also write the report as Markdown")
    add("--rows", type=Path, metavar="FILE", help="also gather all rows in one file (JSON)")
    add("--figure", type=Path, metavar="FILE", help="also draw it, e.g. report.png")
    add("--differences", type=Path, metavar="FILE", help="also draw the paired differences alone")
    add("--html", type=Path, metavar="FILE", help="also write it, with curves and pictures of runs")
    add("--data-dir", type=Path, help="folder with full DABS data, for pictures of such runs")
    parser.set_defaults(run=run_report, interrupted="stopped")


def run_report(options: argparse.Namespace) -> int:
    """Run ``metamae report``."""
    for name in (options.method, options.against):
        check_method(name)
    for path in (options.figure, options.differences):
        if path is not None:
            check_picture(path)
    runs = find_runs(options.paths) if options.html is not None else []
    if runs and not has_results(options.paths):
        write_run_page(options.html, runs, [], data_dir=options.data_dir)
        return 0
    for line in mixed_data(all_results(options.paths)):
        print(f"warning: {line}", file=sys.stderr)
    rows = find_results(options.paths)
    sections = make_report(rows, method=options.method, against=options.against)
    console = make_console()
    for section in sections:
        section.print(console)
    if options.markdown is not None:
        write_text(options.markdown, "\n".join(section.markdown() for section in sections))
    if options.rows is not None:
        write_results(options.rows, rows)
    if options.figure is not None:
        draw_report(rows, options.figure)
    if options.differences is not None:
        names = {"method": options.method, "against": options.against}
        draw_differences(rows, options.differences, **names)
    if options.html is not None:
        names = {"method": options.method, "against": options.against}
        write_run_page(options.html, runs, rows, data_dir=options.data_dir, **names)
    return 0
