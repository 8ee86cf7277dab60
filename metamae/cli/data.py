"""The commands ``metamae data list``, ``check`` and ``prepare``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metamae.cli.data_check import check_folder, check_set, describe
from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared, folder_of
from metamae.data.preparing.source import Source
from metamae.data.sources import SOURCES, get_source
from metamae.errors import ConfigError, DataError, MetamaeError
from metamae.progress import Reporter


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add ``data`` and its commands to a command line; returns the parser of ``data``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "data", help="list, check and prepare the full DABS data sets"
    )
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the full data sets, and which are prepared")
    listing.add_argument("--data-dir", type=Path, metavar="D", help="folder of the full data")
    check = commands.add_parser("check", help="what is there, what is missing, where to put it")
    check.add_argument(
        "name",
        metavar="NAME|FOLDER",
        help="a set; or a folder of downloads: which sets its files could be",
    )
    check.add_argument("--data-dir", type=Path, metavar="D", help="needed with NAME")
    _add_scope(check)
    check.add_argument("--verify", action="store_true", help="compare checksums as well")
    make = commands.add_parser("prepare", help="read raw files into memory-mapped arrays, once")
    make.add_argument("name", metavar="NAME|all")
    make.add_argument("--data-dir", type=Path, required=True, metavar="D")
    _add_scope(make)
    make.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="at an unreadable file: stop (default), or leave it out and name it",
    )
    make.add_argument("--again", action="store_true", help="prepare anew what is prepared already")
    make.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the data set (repeatable); `metamae data check NAME` lists them",
    )
    return parser


def _add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        choices=("pretrain", "probe"),
        help="take what is for pretraining, or for the probe, where the files for it are enough",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="go on with fewer examples than were published; the manifest keeps what is missing",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Run one of the commands; returns the exit code.

    Raises:
        MetamaeError: what the user has to mend.

    Example:
        >>> import argparse
        >>> from rich.console import Console
        >>> from metamae.cli import data as commands
        >>> parser = argparse.ArgumentParser()
        >>> _ = commands.add_parser(parser.add_subparsers())
        >>> commands.run(parser.parse_args(["data", "list"]), Console(quiet=True))
        0
    """
    if options.data_command == "list":
        console.print(_listing(options.data_dir))
        return 0
    reporter = Reporter(console)
    if options.data_command == "check":
        if options.data_dir is None:
            return check_folder(options.name, reporter)
        return check_set(get_source(options.name), options, reporter)
    chosen = _options(options.option)
    if options.name == "all":
        if chosen:
            raise ConfigError("expected --option with one data set, got it with all")
        return _prepare_all(options, reporter)
    _prepare(get_source(options.name), options, chosen, reporter)
    return 0


def _listing(data_dir: Path | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "modality", "task", "pretrained on", "prepared"):
        table.add_column(title)
    for name in SOURCES:
        source = get_source(name)
        task = "-" if source.task is None else f"{source.task.kind}, {source.task.metric}"
        state = "-" if data_dir is None else _state(source, data_dir)
        table.add_row(name, source.modality, task, source.pretrained_on, state)
    return table


def _state(source: Source, data_dir: Path) -> str:
    if not folder_of(source, data_dir).is_dir():
        return "no"
    try:
        Prepared.open(source, data_dir)
    except DataError:
        return "damaged"
    return "yes"


def _prepare(
    source: Source, options: argparse.Namespace, chosen: dict[str, str], reporter: Reporter
) -> None:
    done = prepare(
        source,
        options.data_dir,
        options=chosen,
        on_error=options.on_error,
        again=options.again,
        only=options.only,
        partial=options.partial,
        reporter=reporter,
    )
    describe(done, reporter)
    skipped = len(done.manifest["skipped"])
    if skipped:
        reporter.say(f"{skipped} unreadable files were left out of {source.name}, named above")


def _prepare_all(options: argparse.Namespace, reporter: Reporter) -> int:
    """Prepare every set whose raw files are there; the others are named, failures counted."""
    failed = []
    for name in SOURCES:
        source = get_source(name)
        try:
            source.locate(options.data_dir)
        except DataError as absent:
            if not folder_of(source, options.data_dir).is_dir():
                reporter.say(f"left out {name}: {absent}")
                continue
        try:
            _prepare(source, options, {}, reporter)
        except MetamaeError as fault:
            reporter.say(f"failed {name}: {fault}")
            failed.append(name)
    if failed:
        reporter.say(f"not prepared: {', '.join(failed)}")
    return 1 if failed else 0


def _options(settings: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"expected an option like labels=dabs, got {text!r}")
        chosen[key] = value
    return chosen
