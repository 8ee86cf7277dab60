"""Files that a page links to are there."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    folder = page.parent  # type: ignore[attr-defined]
    assert [link for link in links if not (folder / link).exists()] == []


def test_contributing_links_where_things_live() -> None:
    assert (ROOT / "CONTRIBUTING.md").read_text().count("](") > 30
