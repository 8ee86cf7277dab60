"""TeX to MathML, which browsers show by themselves: no script, nothing fetched."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`([^`]+)`\$")


def mathml(tex: str, *, block: bool = False) -> str:
    """One formula, as HTML that Markdown leaves alone."""
    text = convert(" ".join(tex.split()), display="block" if block else "inline")
    parts = re.split(r"(<[^>]*>)", text.replace("\n", " "))
    return "".join(
        part if part.startswith("<") else re.sub(r"[*_\[\]\\|`]", _entity, part) for part in parts
    )


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"


def convert_page(markdown: str) -> str:
    """A page whose formulas are written as GitHub reads them: ```math blocks, and $`...`$."""
    markdown = BLOCK.sub(lambda match: mathml(match[1], block=True), markdown)
    return INLINE.sub(lambda match: mathml(match[1]), markdown)
