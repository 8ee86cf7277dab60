"""What ``metamae data check`` says of a set, or of a folder of downloads."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from metamae.data.preparing.prepared import Prepared, folder_of
from metamae.data.preparing.source import Layout, Source, options_text
from metamae.data.preparing.trial import SECONDS, try_out
from metamae.data.preparing.whole import missing_files, missing_text
from metamae.data.sources import SOURCES
from metamae.data.sources.recognising import Guess, recognise_all
from metamae.errors import ConfigError, DataError, suggest
from metamae.progress import Reporter


def check_set(source: Source, options: argparse.Namespace, reporter: Reporter) -> int:
    """Say what is there; 0 when the set is prepared and whole, or can be prepared now.

    Raises:
        MetamaeError: what cannot be opened.
    """
    say, data_dir = reporter.say, options.data_dir
    say(f"{source.name}: {source.modality}; get {source.origin}")
    there = _check_layouts(source, data_dir, options.only, reporter)
    for name, option in source.options.items():
        choices = ", ".join(option.choices)
        say(f"option {name}: {option.meaning}; one of {choices} (first is the default)")
    roots = [name.partition(".")[0] for name in source.modules]
    lacking = [name for name in roots if importlib.util.find_spec(name) is None]
    if lacking:
        say(f"missing libraries: {', '.join(lacking)}; run: pip install 'metamae[data]'")
    command = f"metamae data prepare {source.name} --data-dir {data_dir}"
    command += f" --only {options.only}" if options.only else ""
    command += " --partial" if options.partial else ""
    if folder_of(source, data_dir).is_dir():
        return _check_prepared(Prepared.open(source, data_dir), options.verify, command, reporter)
    ready = there is not None and not lacking and _check_content(source, there, options, reporter)
    say(f"not prepared yet; {'run' if ready else 'when the files are there, run'}: {command}")
    return 0 if ready else 1


def _check_prepared(prepared: Prepared, verify: bool, command: str, reporter: Reporter) -> int:
    describe(prepared, reporter)
    damaged = prepared.verify(reporter) if verify else []
    if damaged:
        reporter.say(f"damaged arrays: {', '.join(damaged)}; run: {command} --again")
        return 1
    reporter.say("checksums agree" if verify else "sizes agree; --verify compares checksums too")
    return 0


Found = tuple[Layout, dict[str, Path]]


def _check_layouts(
    source: Source, data_dir: Path, only: str | None, reporter: Reporter
) -> Found | None:
    """The first layout that is complete; where none is, all of them are told."""
    found = source.search(data_dir)
    for layout, there in found:
        roles = source.roles(layout, only)
        if all(role in there for role in roles):
            complete = layout, {role: there[role] for role in roles}
            _describe_layout("complete", *complete, roles, data_dir, reporter)
            return complete
    for layout, there in found:
        _describe_layout("incomplete", layout, there, [*layout.paths], data_dir, reporter)
    if instead := source.instead(data_dir):
        reporter.say(instead)
    return None


def _describe_layout(
    state: str,
    layout: Layout,
    there: dict[str, Path],
    roles: Sequence[str],
    data_dir: Path,
    reporter: Reporter,
) -> None:
    reporter.say(f"layout {layout.name}: {state}")
    for role in roles:
        missing = f"missing {layout.wanted(role, data_dir)}"
        reporter.say(f"  {role}: {f'found   {there[role]}' if role in there else missing}")


def _check_content(
    source: Source, there: Found, options: argparse.Namespace, reporter: Reporter
) -> bool:
    """Open what is there, count it, and read some of it; whether it can be prepared."""
    layout, paths = there
    try:
        missing = dict(missing_files(source, paths))
        rows = try_out(source, layout, paths, only=options.only)
    except DataError as fault:
        reporter.say(f"cannot be read: {fault}")
        return False
    missing |= rows or {}
    reporter.say(
        f"opened: {SECONDS:.0f} seconds of reading met no fault" if rows is None else "read whole"
    )
    if missing:
        reporter.say(
            f"incomplete: {missing_text(missing)}; get the rest, or prepare it with --partial"
        )
    return options.partial or not missing


def describe(prepared: Prepared, reporter: Reporter) -> None:
    """Say what a prepared set holds, and what it lacks."""
    data, manifest = prepared.dataset(), prepared.manifest
    parts = {part: getattr(data, part) for part in ("pretrain", "train", "test")}
    rows = ", ".join(f"{part} {len(p)}" for part, p in parts.items() if p is not None)
    reporter.say(f"prepared in {prepared.folder} by metamae {manifest['metamae']}: {rows}")
    if manifest.get("only"):
        reporter.say(f"only for: {manifest['only']}")
    if manifest.get("partial"):
        reporter.say(f"partial: {missing_text(manifest['partial'])}")
    if prepared.options:
        reporter.say(f"options: {options_text(prepared.options)}")
    for entry in manifest["skipped"]:
        reporter.say(f"skipped {entry['file']}: {entry['reason']}")


def check_folder(name: str, reporter: Reporter) -> int:
    """Say of every file in a folder which set it could be; 0 when it is one at least.

    Raises:
        ConfigError: it is no folder.
    """
    folder = Path(name)
    if name in SOURCES:
        raise ConfigError(f"expected --data-dir with {name}, got none: where are its files?")
    if not folder.is_dir():
        raise ConfigError(f"expected a data set or a folder, {suggest(name, SOURCES)}")
    known = set()
    for file, guesses in recognise_all(folder):
        reporter.say(f"{file}: {_guesses_text(guesses)}")
        if not isinstance(guesses, str):
            known |= {guess.source for guess in guesses}
    for source in (one for one in SOURCES if one in known):
        reporter.say(f"next: metamae data check {source} --data-dir {folder}")
    return 0 if known else 1


def _guesses_text(guesses: Sequence[Guess] | str) -> str:
    if isinstance(guesses, str):
        return guesses
    if not guesses:
        return "of no full data set that is known here"
    sets = ", ".join(dict.fromkeys(guess.source for guess in guesses))
    if guesses[0].named:
        return sets
    return f"could be {sets}, by its content; to be found, call it {guesses[0].name}"
