"""Docstrings as Markdown: their roles, formulas and examples are reStructuredText's."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from mathematics import mathml

ROLE = re.compile(r":(?:class|func|data|meth|mod|attr):`(~?)([^`]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::[ \n]?(.*?)\n(?=\s*\n|\Z)", re.DOTALL | re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """One docstring."""
    text = BLOCK.sub(lambda m: f"\n{m[1]}{mathml(m[2], block=True)}\n", text + "\n").strip("\n")
    text = FORMULA.sub(lambda m: mathml(m[1]), text)
    text = ROLE.sub(lambda m: f"`{m[2].rpartition('.')[2] if m[1] else m[2]}`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
