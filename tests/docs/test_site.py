"""The site: every page can be reached, and those made from code are up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

import metalearn
import metamae
from tests import ROOT

DOCS = ROOT / "docs"


def load(name: str) -> ModuleType:
    """A program of docs/site."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(node: Any) -> list[str]:
    """Pages of a navigation, in order."""
    if isinstance(node, str):
        return [node]
    return [
        leaf
        for each in (node.values() if isinstance(node, dict) else node)
        for leaf in leaves(each)
    ]


def test_the_configuration_page_is_that_of_the_dataclasses() -> None:
    """If not: python docs/site/configuration.py."""
    page = load("configuration")
    assert page.PAGE.read_text() == page.make_page()
    for key in ("training.steps", "baseline.emix.alpha", "learn.settings", "seed"):
        assert f"| `{key}` |" in page.make_page()


def test_a_setting_without_a_meaning_is_refused() -> None:
    class Undocumented:
        """No attributes."""

    with pytest.raises(SystemExit, match="`Attributes:` in the docstring of Undocumented"):
        load("configuration")._read_docstring(Undocumented)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(leaves(settings["nav"])) == pages
    assert settings["strict"] is True


@pytest.mark.parametrize("package", [metalearn, metamae])
def test_every_public_name_is_in_the_reference(package: ModuleType) -> None:
    text = (DOCS / "api" / f"{package.__name__}.md").read_text()
    named = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    assert {f"{package.__name__}.{name}" for name in package.__all__ if name[0] != "_"} <= set(
        named
    )


def test_the_quoted_lines_are_those_of_the_linked_files() -> None:
    """A line of the page on the equations is a line of a file that its section links to."""
    sections = (DOCS / "metamae.md").read_text().split("\n## ")[1:]
    quoted = 0
    for section in sections:
        links = re.findall(r"\]\(\.\./([\w/]+\.py)#(\w+)\)", section)
        for path, name in links:
            assert re.search(rf"^(class|def) {name}\b", (ROOT / path).read_text(), re.MULTILINE)
        lines = {
            line.strip() for path, _ in links for line in (ROOT / path).read_text().splitlines()
        }
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            assert [line for line in block.splitlines() if line not in lines] == []
            quoted += block.count("\n")
    assert quoted >= 10


def test_links_out_of_the_pages_lead_to_files_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("mkdocs", "latex2mathml"):
        pytest.importorskip(library)
    monkeypatch.setattr(sys, "path", list(sys.path))
    hooks = load("hooks")

    def moved(uri: str, text: str) -> str:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
        return str(hooks.on_page_markdown(text, page, None, None))

    assert moved("adapter.md", "[a](../metalearn/inner.py#b)") == (
        "[a](repository/metalearn/inner.py.md#b)"
    )
    assert moved("adapter.md", "[a](index.md) [b](../metalearn)") == (
        "[a](index.md) [b](repository/metalearn/index.md)"
    )
    assert moved("repository/CONTRIBUTING.md", "[a](docs/adapter.md)") == "[a](../adapter.md)"
    assert moved("adapter.md", "[a](../nowhere.py) f[0](x)") == "[a](../nowhere.py) f[0](x)"
    assert moved("adapter.md", "$`z^*`$").startswith("<math")
    assert moved("adapter.md", r"| `a\|b` | `c` |") == "| <code>a&#124;b</code> | `c` |"
    pieces = hooks._source('"""Doc."""\n\n@f\nclass A:\n    x = 1\n')
    assert '## A { #A }\n\n````python linenums="3"\n@f\nclass A:' in pieces


def test_docstrings_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("griffe", "latex2mathml"):
        pytest.importorskip(library)
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = load("docstrings").to_markdown(
        "Of :class:`~a.B`, :math:`x`.\n\n.. math:: y\n\nExample:\n    >>> ``1``"
    )
    assert text.startswith("Of `B`, <math")
    assert ".. math" not in text
    assert text.endswith("Examples:\n    >>> `1`")
