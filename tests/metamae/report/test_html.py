"""Pages that need nothing beside them, and show data as they are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metamae import DataError
from metamae.report.html import Chapter, Grid, Paragraph, Picture, Preformatted, render_page

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Texts(HTMLParser):
    """Tags and texts of a page, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Texts:
    texts = Texts()
    texts.feed(page)
    return texts


ANY = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1)


@given(text=ANY)
@example(text="<script>alert(1)</script> & <b>")
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    grid = Grid(header=[text], lines=[[text], ["1"]], marked=[0])
    page = render_page(
        text, [Chapter(text, [Paragraph(text), Preformatted(text), grid])], lead=text
    )
    found = read(page)
    assert found.texts.count(text) >= 7
    plain = render_page("x", [Chapter("x", [Paragraph("x"), Preformatted("x"), grid])], lead="x")
    assert found.tags == read(plain).tags, "no text adds a tag"


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(PIXEL)
    picture = Picture(path=tmp_path / "dot.png", alt='a "dot"', caption="<dot>")
    page = render_page("title", [Chapter("one", [picture])])
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert "http://" not in page
    assert "https://" not in page
    assert "script" not in read(page).tags
    assert "prefers-color-scheme: dark" in page
    assert "default-src 'none'" in page
    assert 'alt="a &quot;dot&quot;"' in page


def test_pictures_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a picture ending in .png, .svg, got 'x.pdf'"):
        Picture(path=tmp_path / "x.pdf", alt="x").html()


def test_numbers_are_set_to_the_right() -> None:
    html = Grid(header=["a"], lines=[["-1.5"], ["x"]]).html()
    assert '<td class="number">-1.5</td>' in html
    assert "<td>x</td>" in html
    line = Grid(header=["a"], lines=[["61.1 (4.7)", "20 nearest neighbours", "3dcb96"]]).html()
    assert line.count('class="number"') == 1
