"""Files that are written whole or not at all, and texts that are read with limits."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers stay
    fcntl = None  # type: ignore[assignment]

_RANDOM = re.compile(r"[a-z0-9_]+")
"""What tempfile puts after the prefix."""

_SEALED = re.compile(r"(.*\n)([ \t]{32})\n?", re.DOTALL)
"""A text and its checksum."""

LONGEST_TEXT = 1 << 28
"""Bytes of a text file that is read whole; a result file of 100,000 rows has 80 MB."""

_MOST_NODES, _DEEPEST = 1_000_000, 100
"""Of a YAML document, its aliases written out."""


class replacing:
    """Context of a temporary file that replaces ``path`` when the block succeeds.

    Its name begins with a dot and the name of the file. It is locked while it is written, so that
    the next writer can tell what a killed process left behind from what a live one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.path)
            self.handle, self.temporary = _locked_temporary(self.path)
        return self.temporary

    def __exit__(self, kind: object, fault: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                with naming(self.path):
                    with self.temporary.open("rb+") as file:
                        os.fsync(file.fileno())
                    os.chmod(self.temporary, 0o644)
                    os.replace(self.temporary, self.path)
            elif isinstance(fault, OSError):
                _name(fault, self.path)
        finally:
            with suppress(OSError):  # replaced already, or the folder is gone
                self.temporary.unlink()
            os.close(self.handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        _lock(handle)
        with suppress(OSError):
            # Another writer may have taken it for a leftover before it was locked.
            if os.path.samestat(os.stat(name), os.fstat(handle)):
                return handle, Path(name)
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file, unless it is locked or cannot be."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clear_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of ``path`` left; never a live one's."""
    prefix = f".{path.name}."
    with suppress(OSError):
        for entry in list(path.parent.iterdir()):
            if entry.name.startswith(prefix) and _RANDOM.fullmatch(entry.name[len(prefix) :]):
                with suppress(OSError), entry.open("rb") as file:
                    if _lock(file.fileno()):
                        entry.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not, such as that of a full disk."""
    try:
        yield
    except OSError as fault:
        _name(fault, path)
        raise


def _name(fault: OSError, path: Path) -> None:
    if fault.errno is not None and fault.filename is None:
        fault.filename = str(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; refuses NaN and infinity, which JSON does not know.

    The last line holds the text's CRC-32 in blanks (0) and tabs (1): JSON has no comments, and so
    the file is plain JSON to every reader, while :func:`read_json` finds a changed byte.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_text(path, text + _seal(text) + "\n")


def _seal(text: str) -> str:
    return f"{zlib.crc32(text.encode()):032b}".translate({48: " ", 49: "\t"})


def read_text(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        ValueError: another encoding, or more than :data:`LONGEST_TEXT` bytes.
        OSError: no such file.
    """
    size = path.stat().st_size
    if size > LONGEST_TEXT:
        raise ValueError(f"{size} bytes, more than the {LONGEST_TEXT} of a text that is read here")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Values of a JSON file.

    A file without the last line of :func:`write_json` is taken as it is.

    Raises:
        ValueError: no JSON, NaN or infinite numbers, a key twice, too deep or too long, or changed
            since it was written.
        OSError: no such file.
    """
    text = read_text(path)
    sealed = _SEALED.fullmatch(text)
    if sealed and _seal(sealed[1]) != sealed[2]:
        raise ValueError(
            "it is not what was written, by its checksum; if you changed it yourself, remove the "
            "blanks at its end"
        )
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not know")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:40]}, which is no finite number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it holds a key twice")
    return values


def parse_yaml(text: str) -> Any:
    """Values of a YAML text.

    Aliases may be used, but not to make much of little: the document with its aliases written out
    has at most a million entries, and is nested at most 100 deep.

    Raises:
        ValueError: no YAML, an impossible value, a key twice, too deep or too long; in one line.

    Example:
        >>> from metamae.files import parse_yaml
        >>> parse_yaml("seeds: [1, 2]")
        {'seeds': [1, 2]}
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The constructors of dates and numbers raise whatever Python's own do.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError) as fault:
        raise ValueError(" ".join(str(fault).split()) or type(fault).__name__) from fault
    except AttributeError as fault:  # a tag such as !!timestamp on a text that is none
        raise ValueError(f"a value that does not fit its tag ({fault})") from fault


def _measure(root: yaml.Node) -> None:
    """Refuse a document that grows too large when its aliases are written out."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST or id(node) in open_nodes:
            raise ValueError(f"it is nested deeper than {_DEEPEST}, or in itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            open_nodes.remove(id(node))
        if sizes[id(node)] > _MOST_NODES:
            raise ValueError(f"it has more than {_MOST_NODES} entries, its aliases written out")
        return sizes[id(node)]

    size(root, 0)


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise ValueError("it holds a key twice")
        return [item for pair in node.value for item in pair]
    return []
