"""What makes a package of the repository: metadata, extras, citation."""

from __future__ import annotations

import re
import tomllib

import yaml

from metamae import __version__
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    paper = citation["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{', '.join(names)}, *{paper['title']}*, NeurIPS {paper['year']}" in readme


def test_the_extra_all_holds_every_extra_of_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    names = re.fullmatch(r"metamae\[([\w,]+)\]", everything)
    assert names is not None
    assert set(names[1].split(",")) == set(extras) - {"all", "test", "dev", "docs", "bench"}


def test_every_direct_dependency_has_a_pin() -> None:
    """But torch, which the Makefile names, and the peers of the benchmarks."""
    pins = {
        line.partition("==")[0] for line in (ROOT / "requirements/pins.txt").read_text().split()
    }
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(d for e in set(extras) - {"bench"} for d in extras[e])]
    plain = {re.split(r"[\[<>=]", name)[0].lower().replace("_", "-") for name in named}
    assert plain - {"torch", "metamae"} <= pins
