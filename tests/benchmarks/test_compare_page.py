"""The page of comparisons on data nobody tuned on is made from the committed rows."""

from __future__ import annotations

import importlib.util
import json
import re

from tests import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_made_from_the_rows() -> None:
    """And the guide says of them what their sentences say."""
    spec = importlib.util.spec_from_file_location("sets", ROOT / "benchmarks" / "compare_sets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = json.loads((RESULTS / "compare.json").read_text())
    assert (RESULTS / "compare.md").read_text() == module.make_page(rows)
    pays = [not one["sentence"].startswith("It does not pay here") for one in rows]
    guide = re.sub(r"\s+", " ", (ROOT / "docs" / "compare.md").read_text())
    assert (len(pays), sum(pays)) == (2, 0)
    assert "two small tables, on both of which pretraining does not pay" in guide
