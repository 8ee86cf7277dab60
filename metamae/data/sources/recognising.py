"""Which full data set a downloaded file could belong to, by its name or by what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metamae.data.formats.archives import intact, open_bundle
from metamae.data.preparing.layouts import forms
from metamae.data.preparing.source import Source
from metamae.data.sources import SOURCES, get_source
from metamae.errors import DataError

_PEEKED = 2000


@dataclass(frozen=True)
class Guess:
    """What a file or folder could be.

    Attributes:
        source: Name of the set.
        role: Which of its raw files.
        named: Whether it is called as the set's reader expects.
        name: What it should be called.
    """

    source: str
    role: str
    named: bool
    name: str


def recognise(path: Path) -> list[Guess]:
    """Sets that a file or folder could belong to; by content, and by name where it is as large.

    Raises:
        DataError: an archive that cannot be read.
    """
    with intact(path):
        names = [f"{path.name}/{name}" for name in open_bundle(path).first_names(_PEEKED)]
    guesses = []
    for source in map(get_source, SOURCES):
        for role, content in source.contents.items():
            called = source.names(role)
            named = any(path.match(form) for form in forms(called))
            if any(map(content.fits, names)) or (named and _nested(called, names)):
                guesses.append(Guess(source.name, role, named, _short(source, role)))
    best = [guess for guess in guesses if guess.named]
    return best or guesses


def _nested(called: tuple[str, ...], names: list[str]) -> bool:
    """Whether one of some files is an archive of a role's name."""
    inside = {name.rpartition("/")[2] for name in names}
    return not inside.isdisjoint(form.rpartition("/")[2] for form in forms(called))


def _short(source: Source, role: str) -> str:
    return source.names(role)[0]


def recognise_all(folder: Path) -> Iterator[tuple[str, list[Guess] | str]]:
    """Every file and folder in a folder, with what it could be, or why it cannot be read.

    A folder that is none of a set's is looked into, one level deep.

    Example:
        >>> import tempfile, pathlib
        >>> from metamae.data.sources.recognising import recognise_all
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     _ = (folder / "iden_split.txt").write_text("1 id10001/a/00001.wav")
        ...     [(name, guesses[0].source) for name, guesses in recognise_all(folder)]
        [('iden_split.txt', 'voxceleb1')]
    """
    for path in _visible(folder):
        guesses = _recognise(path)
        if path.is_dir() and not guesses and (inside := _visible(path)):
            yield from ((f"{path.name}/{file.name}", _recognise(file)) for file in inside)
        else:
            yield path.name, guesses


def _recognise(path: Path) -> list[Guess] | str:
    try:
        return recognise(path)
    except DataError as fault:
        return str(fault)


def _visible(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "prepared"
    )
