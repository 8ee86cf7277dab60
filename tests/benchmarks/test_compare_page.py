"""The page of comparisons on data nobody tuned on is made from the committed rows."""

from __future__ import annotations

import json
import re

from tests import ROOT
from tests.benchmarks.loading import load_program

RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_made_from_the_rows() -> None:
    """And the guide says of them what their sentences say."""
    module = load_program("compare_sets")
    rows = json.loads((RESULTS / "compare.json").read_text())
    assert (RESULTS / "compare.md").read_text() == module.make_page(rows)
    pays = [not one["sentence"].startswith("It does not pay here") for one in rows]
    guide = re.sub(r"\s+", " ", (ROOT / "docs" / "compare.md").read_text())
    assert (len(pays), sum(pays)) == (6, 0)
    assert "six small data sets, five tables and a series; on none of them does it pay" in guide
    words = [d["was"] for one in rows for d in one["decisions"]]
    assert (words.count("right"), words.count("wrong"), len(words)) == (1, 0, 12)
    assert "Of its twelve recommendations one was clearly right, none wrong" in guide
    wine = next(one for one in rows if one["data"] == "wine")
    assert wine["sentence"].partition(";")[0] in guide
