"""Options that several commands share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from metamae.data import Dataset, load_dataset
from metamae.data.description import Description
from metamae.data.own import KINDS, Opened, is_path, open_data
from metamae.errors import ConfigError
from metamae.training.ranks import tells


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and where to read more."""
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
        if tells():
            print(f"error: {line}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set adaptation.steps=5 (repeatable)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--data-dir``."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--data-dir", type=Path, help="folder with full DABS data (not needed for embedded sets)")


_DATA_OPTIONS = {
    "label": "label",
    "id": "ids",
    "group": "group",
    "split": "split",
    "as": "kind",
    "test_share": "test_share",
    "skip_bad": "skip_bad",
    "pretrain_on_test": "pretrain_on_test",
}


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """Add ``--minutes``, the budget of the preset ``auto``."""
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="time budget of the preset auto (default: 5)"
    )


def repeat_options(options: argparse.Namespace) -> str:
    """What the next command on the same own data needs: its path, and what was said of it."""
    names = {"label": "--label", "id": "--id", "group": "--group", "split": "--split"}
    said = [
        f" {text} {shlex.quote(getattr(options, key))}"
        for key, text in names.items()
        if getattr(options, key)
    ]
    dropped = [f" --drop {shlex.quote(names)}" for names in options.drop or ()]
    bad = [" --skip-bad"] if options.skip_bad else []
    return "".join([f" --on {shlex.quote(options.dataset)}", *said, *dropped, *bad])


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add what is said of own data by path: ``--label``, ``--id``, ``--as`` and so on."""
    group = parser.add_argument_group("your own data, by path")
    add = group.add_argument
    add("--label", metavar="NAME", help="column, key or file (.npy, .csv) that a probe predicts")
    add("--id", metavar="NAME", help="column, key or file with names of the rows")
    add("--group", metavar="NAME", help="column, key or file: a group is never split")
    add(
        "--drop",
        action="append",
        metavar="NAME[,NAME]",
        help="columns or keys to leave out (repeatable)",
    )
    add("--split", metavar="NAME", help="column, key or file that says train or test of each row")
    add("--as", metavar="KIND", choices=KINDS, help=f"what it is: {', '.join(KINDS)}")
    add("--token-size", metavar="N[,N]", help="steps of a token, or height and width of a patch")
    add("--test-share", type=float, metavar="S", help="share of test rows (default: 0.2)")
    add("--skip-bad", action="store_true", default=None, help="leave out unreadable files")
    add("--pretrain-on-test", action="store_true", default=None, help="pretrain on test rows too")


def open_named(
    options: argparse.Namespace,
    *,
    name: str | None = None,
    like: Description | None = None,
    say: Callable[[str], None] | None = None,
    token_size: tuple[int, ...] = (),
) -> Dataset:
    """The data set that is named, or own data by path.

    Args:
        options: Parsed options of :func:`add_data_options`, with ``dataset`` and ``data_dir``.
        name: The name or path, where it is not ``options.dataset``.
        like: What a run remembers of its data, to make its inputs of a path.
        say: Told every remark on own data.
        token_size: Token size of a data set by name.

    Raises:
        ConfigError: options of own data with a data set by name.
        DataError: what cannot be read.
    """
    name = options.dataset if name is None else name
    if is_path(name):
        opened = open_path(options, name, like=like)
        if say is not None:
            for line in opened.remarks:
                say(line)
        return opened.dataset
    if say is not None and Path(name).exists():
        say(f"{name}: the data set of that name; for the file or folder here, write ./{name}")
    named = [f"--{key.replace('_', '-')}" for key in _given(options)]
    if named:
        raise ConfigError(
            f"expected {', '.join(named)} with a path to your own data, got the data set {name!r}"
            + (
                f"; if you mean a file or a folder of that name, write ./{name}"
                * Path(name).exists()
            )
        )
    return load_dataset(name, data_dir=options.data_dir, token_size=token_size)


def open_path(options: argparse.Namespace, path: str, like: Description | None = None) -> Opened:
    """Own data by path; what was not said is as the run of ``like`` had it."""
    values = {
        _DATA_OPTIONS[key]: value for key, value in _given(options).items() if key in _DATA_OPTIONS
    }
    if like is not None:
        kept = like.recipe.get("split", {})
        values = {key: kept[key] for key in ("test_share", "seed") if key in kept} | values
        for text in ("as", "token_size"):
            if getattr(options, text) is not None:
                raise ConfigError(
                    f"expected no --{text.replace('_', '-')}: the run's own holds for other data"
                )
    if options.drop:
        values["drop"] = tuple(part for text in options.drop for part in text.split(",") if part)
    return open_data(path, token_size=_sizes(options.token_size), like=like, **values)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    keys = (*_DATA_OPTIONS, "drop", "token_size")
    return {key: getattr(options, key) for key in keys if getattr(options, key, None) is not None}


def _sizes(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (text or "").replace("x", ",").split(",") if part)
    except ValueError as fault:
        raise ConfigError(
            f"expected --token-size as a whole number or two, such as 16 or 8,8, got {text!r}"
        ) from fault
