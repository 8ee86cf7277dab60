"""TeX to MathML, which browsers show by themselves: no script, nothing fetched."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r"^```math\n(?P<fence>.*?)\n```$"
    r"|(?P<code>^(?P<marks>`{3,})[^\n]*\n.*?^(?P=marks)$|(?<!`)`[^`\n]+`(?!\$))"
    r"|\$`(?P<ticks>[^`]+)`\$"
    r"|\$\$(?P<block>[^$]+)\$\$"
    r"|\$(?P<inline>[^\s$`](?:[^$`]*[^\s$`])?)\$",
    re.DOTALL | re.MULTILINE,
)
"""A formula in each of the ways that GitHub reads, or code, in which there are none."""


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
    """A page whose formulas are written as GitHub reads them."""
    return FORMULA.sub(_convert, markdown)


def _convert(match: re.Match[str]) -> str:
    if match["code"]:
        return match[0]
    block = match["fence"] or match["block"]
    return mathml(block or match["ticks"] or match["inline"], block=bool(block))
