"""Reports as one HTML file that needs nothing beside it: no style sheet, script or picture file.

Every text is escaped here and nowhere else: whatever stands in data, such as the name of a class,
is shown as it is and never read as HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeAlias

from metamae.errors import DataError
from metamae.files import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --line: #d5d8dc;
  --soft: #f3f5f7; --faint: #5f6770; --mark: #0b6e4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --paper: #16181b; --line: #3a3f45;
  --soft: #202429; --faint: #9aa3ad; --mark: #5fd3a4; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.lead { font-size: 1.15rem; border-left: 4px solid var(--mark); padding: .4rem 0 .4rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th { background: var(--soft); } td.number { text-align: right; white-space: nowrap; }
tr.mark td { font-weight: 600; color: var(--mark); }
figure { margin: 1.2rem 0; } figcaption, .note { color: var(--faint); font-size: .9rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may do with the page: show what is in it, and fetch nothing."""

MARKED, NUMBER = '<tr class="mark">', '<td class="number">'
PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a ``lead`` stands out, a ``note`` steps back."""

    text: str
    kind: str = ""

    def html(self) -> str:
        """It as HTML."""
        mark = f' class="{self.kind}"' if self.kind in ("lead", "note") else ""
        return f"<p{mark}>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Preformatted:
    """Text whose lines and blanks stay: a configuration."""

    text: str

    def html(self) -> str:
        """It as HTML."""
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table.

    Attributes:
        header: Names of the columns.
        lines: Cells as text.
        marked: Numbers of the lines that stand out.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    marked: Sequence[int] = ()

    def html(self) -> str:
        """It as HTML; numbers, with a spread or without one, are set to the right."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = "\n".join(
            (MARKED if number in self.marked else "<tr>") + "".join(map(_cell, line)) + "</tr>"
            for number, line in enumerate(self.lines)
        )
        return (
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
            "</tbody></table></div>"
        )


def _cell(text: str) -> str:
    begins = text[:1].isdigit() or (text[:1] in "+-−" and text[1:2].isdigit())
    number = begins and not any(map(str.isalpha, text))
    return (NUMBER if number else "<td>") + escape(text) + "</td>"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG or SVG file, which becomes part of the page.

    Attributes:
        path: The file.
        alt: What it shows, for those who do not see it.
        caption: Shown below it.
    """

    path: Path
    alt: str
    caption: str = ""

    def html(self) -> str:
        """It as HTML.

        Raises:
            DataError: another kind of file.
        """
        kind = PICTURES.get(self.path.suffix.lower())
        if kind is None:
            raise DataError(
                f"expected a picture ending in {', '.join(PICTURES)}, got {self.path.name!r}"
            )
        content = base64.b64encode(self.path.read_bytes()).decode()
        below = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        image = f'<img alt="{escape(self.alt)}" src="data:{kind};base64,{content}">'
        return f"<figure>{image}{below}</figure>"


Block: TypeAlias = Paragraph | Preformatted | Grid | Picture


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def render_page(title: str, chapters: Sequence[Chapter], *, lead: str = "") -> str:
    """A whole page.

    Args:
        title: Title of the page.
        chapters: What it consists of.
        lead: A sentence that stands out at the top.

    Example:
        >>> from metamae.report.html import Chapter, Paragraph, render_page
        >>> page = render_page("a < b", [Chapter("One", [Paragraph("<script>")])])
        >>> "<h1>a &lt; b</h1>" in page, "<script>" in page
        (True, False)
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if lead:
        parts.append(Paragraph(lead, "lead").html())
    for chapter in chapters:
        parts.append(f"<h2>{escape(chapter.title)}</h2>")
        parts += [block.html() for block in chapter.blocks]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def write_page(path: Path, title: str, chapters: Sequence[Chapter], *, lead: str = "") -> None:
    """Write a page, whole or not at all."""
    write_text(path, render_page(title, chapters, lead=lead))
