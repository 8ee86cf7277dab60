"""What mkdocs does not do by itself: links to files of the repository, and formulas.

A page may link to any file of the repository, relative to itself, as it has to be for readers of
the repository. Each file that is linked becomes a part of the site, below `repository/`: Markdown
and Python as pages, a folder as a list, anything else as it is. `../metamae/methods/mae.py#MAE`
leads to the class.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

sys.path.insert(0, str(Path(__file__).parent))
from mathematics import convert_page

ROOT = Path(__file__).resolve().parents[2]
PLACE = "repository/"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
BAR = re.compile(r"(?<=[ (|])`([^`\n]*\\\|[^`\n]*)`")
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Any, config: Any) -> Any:
    """Add what the pages link to, and what the added pages link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    added: set[str] = set()
    while waiting:
        for path in _targets(waiting.pop()):
            if not _in_docs(path) and path not in added:
                added.add(path)
                files.append(_make_file(path, config))
                waiting += [path] * path.endswith(".md")
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to where the files are on the site; show formulas."""
    uri = page.file.src_uri
    origin = uri.removeprefix(PLACE) if uri.startswith(PLACE) else f"docs/{uri}"
    if not (ROOT / origin).is_file() or not origin.endswith(".md"):
        return markdown

    def moved(match: re.Match[str]) -> str:
        path = _resolve(origin, match[1])
        if path is None:
            return match[0]
        place = _uri(path)
        return f"]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{match[2] or ''})"

    return convert_page(BAR.sub(_code_with_bars, LINK.sub(moved, markdown)))


def _code_with_bars(match: re.Match[str]) -> str:
    r"""Code in a cell, `a\|b`: GitHub takes the backslash away, Markdown in Python does not."""
    return f"<code>{html.escape(match[1]).replace(chr(92) + '|', '&#124;')}</code>"


def _targets(page: str) -> Iterator[str]:
    """Paths from the root that a Markdown file links to."""
    for match in LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
        path = _resolve(page, match[1])
        if path is not None:
            yield path


def _resolve(page: str, link: str) -> str | None:
    """A link's file, as a path from the root; `None` if there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _in_docs(path: str) -> bool:
    """Whether mkdocs finds it by itself."""
    return path.startswith("docs/") and not path.startswith("docs/site/")


def _uri(path: str) -> str:
    """Where a file is among the sources of the site."""
    if _in_docs(path):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{PLACE}{path}/index.md"
    return PLACE + path + (".md" if path.endswith(".py") else "")


def _make_file(path: str, config: Any) -> File:
    file, options = ROOT / path, {"inclusion": InclusionLevel.NOT_IN_NAV}
    if file.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if p.name[0] not in "._")
        listing = "\n".join(f"- `{name}`" for name in names)
        content = f"{UNSEARCHED}# {path}/\n\nFiles of this folder of the repository:\n\n{listing}\n"
    elif path.endswith(".py"):
        content = f"{UNSEARCHED}# {path}\n\n{_source(file.read_text(encoding='utf-8'))}"
    elif path.endswith(".md"):
        content = UNSEARCHED + file.read_text(encoding="utf-8")
    else:
        return File.generated(config, _uri(path), abs_src_path=str(file), **options)
    return File.generated(config, _uri(path), content=content, **options)


def _source(text: str) -> str:
    """A Python file in pieces: what comes first, then every class and function under its name."""
    lines = text.splitlines()
    starts = [(1, "")]
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            starts.append((first, node.name))
    ends = [first - 1 for first, _ in starts[1:]] + [len(lines)]
    pieces = []
    for (first, name), last in zip(starts, ends, strict=True):
        code = "\n".join(lines[first - 1 : last]).rstrip()
        if code:
            head = f"## {name} {{ #{name} }}\n\n" if name else ""
            pieces.append(f'{head}````python linenums="{first}"\n{code}\n````\n')
    return "\n".join(pieces)
