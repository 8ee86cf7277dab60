"""The commands ``metamae data list``, ``check`` and ``prepare``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metamae.data.preparing.prepare import prepare
from metamae.data.preparing.prepared import Prepared, folder_of
from metamae.data.preparing.source import Source, options_text
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
    check.add_argument("name", metavar="NAME")
    check.add_argument("--data-dir", type=Path, required=True, metavar="D")
    check.add_argument("--verify", action="store_true", help="compare checksums as well")
    make = commands.add_parser("prepare", help="read raw files into memory-mapped arrays, once")
    make.add_argument("name", metavar="NAME|all")
    make.add_argument("--data-dir", type=Path, required=True, metavar="D")
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
        return _check(get_source(options.name), options.data_dir, options.verify, reporter)
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


def _check(source: Source, data_dir: Path, verify: bool, reporter: Reporter) -> int:
    """Say what is there; 0 when the set is prepared and whole, or can be prepared now."""
    say = reporter.say
    say(f"{source.name}: {source.modality}; get {source.origin}")
    complete = _check_layouts(source, data_dir, reporter)
    for name, option in source.options.items():
        choices = ", ".join(option.choices)
        say(f"option {name}: {option.meaning}; one of {choices} (first is the default)")
    roots = [name.partition(".")[0] for name in source.modules]
    lacking = [name for name in roots if importlib.util.find_spec(name) is None]
    if lacking:
        say(f"missing libraries: {', '.join(lacking)}; run: pip install 'metamae[data]'")
    folder = folder_of(source, data_dir)
    command = f"metamae data prepare {source.name} --data-dir {data_dir}"
    if not folder.is_dir():
        say(
            f"not prepared yet; {'run' if complete else 'when the files are there, run'}: {command}"
        )
        return 0 if complete and not lacking else 1
    prepared = Prepared.open(source, data_dir)
    _describe(prepared, reporter)
    damaged = prepared.verify(reporter) if verify else []
    if damaged:
        say(f"damaged arrays: {', '.join(damaged)}; run: {command} --again")
        return 1
    say("checksums agree" if verify else "sizes agree; --verify compares checksums too")
    return 0


def _check_layouts(source: Source, data_dir: Path, reporter: Reporter) -> bool:
    complete = False
    for layout in source.layouts:
        there = layout.find(data_dir, source.name)
        whole = len(there) == len(layout.paths)
        complete |= whole
        reporter.say(f"layout {layout.name}: {'complete' if whole else 'incomplete'}")
        for role, path in layout.paths.items():
            state = f"found   {there[role]}" if role in there else f"missing {data_dir / path}"
            reporter.say(f"  {role}: {state}")
    return complete


def _describe(prepared: Prepared, reporter: Reporter) -> None:
    data, manifest = prepared.dataset(), prepared.manifest
    parts = {part: getattr(data, part) for part in ("pretrain", "train", "test")}
    rows = ", ".join(f"{part} {len(p)}" for part, p in parts.items() if p is not None)
    reporter.say(f"prepared in {prepared.folder} by metamae {manifest['metamae']}: {rows}")
    if prepared.options:
        reporter.say(f"options: {options_text(prepared.options)}")
    for entry in manifest["skipped"]:
        reporter.say(f"skipped {entry['file']}: {entry['reason']}")


def _prepare(
    source: Source, options: argparse.Namespace, chosen: dict[str, str], reporter: Reporter
) -> None:
    done = prepare(
        source,
        options.data_dir,
        options=chosen,
        on_error=options.on_error,
        again=options.again,
        reporter=reporter,
    )
    _describe(done, reporter)
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
