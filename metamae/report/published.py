"""The paper's numbers as data, and which of them an embedded set is shown beside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from metamae.report.rows import DEFAULT

MARKS = {"*": "copied from DABS 1.0", "+": "copied from DABS 2.0"}
"""What the paper's marks mean (inferred); numbers without one were run by its authors."""

STAND_INS = {
    ("sensors", "sensors"): ("pamap2", "pamap2"),
    ("tabular", "tabular"): ("higgs", "higgs"),
    ("multispectral_spatial", "multispectral_spatial"): ("eurosat", "eurosat"),
    ("genomes", "genomes"): ("genomics", "genomics"),
    ("peptides", "peptides"): ("pfam", "pfam"),
    ("vowels", "vowels"): ("librispeech", "librispeech"),
    ("digits", "digits"): ("imagenet32", "cifar10"),
    ("captioned", "captioned"): ("mscoco", "mismatched_caption"),
}
"""Embedded (data set, transfer) to the full ones whose published numbers stand beside it.

``basic_motions`` has none: it is for smoke tests and for a transfer that the paper does not have.
Nor have ``diamonds``, ``jobs``, ``pens`` and ``voices``: the full sets have their stand-ins.
"""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number of the paper.

    Attributes:
        table: Where it stands.
        dataset: Full data set pretrained on.
        transfer: Full data set probed on.
        method: Method name, or ``best-previous``.
        variant: Variant, as in sweep files.
        value: The number: a share of one, or Spearman's correlation.
        metric: Name of the metric.
        mark: The paper's mark, a key of :data:`MARKS`, or empty.
    """

    table: str
    dataset: str
    transfer: str
    method: str
    variant: str
    value: float
    metric: str
    mark: str


@cache
def published() -> tuple[Published, ...]:
    """All numbers of the paper.

    Example:
        >>> from metamae.report.published import published
        >>> [one.value for one in published() if one.transfer == "vqa" and one.method == "metamae"]
        [0.697]
    """
    text = (resources.files("metamae") / "published.yaml").read_text()
    return tuple(number for table in yaml.safe_load(text) for number in _numbers(table))


def look_up(
    dataset: str, transfer: str, method: str, variant: str = DEFAULT
) -> tuple[Published, ...]:
    """The paper's numbers for a cell, of an embedded set those of the full set it stands for.

    There may be several: the paper gives MAE on LibriSpeech as 46.0 and as 33.3.

    Example:
        >>> from metamae.report.published import look_up
        >>> [(one.table, one.value) for one in look_up("sensors", "sensors", "mae")]
        [('Table 4', 0.865)]
    """
    place = STAND_INS.get((dataset, transfer), (dataset, transfer))
    return tuple(
        number
        for number in published()
        if (number.dataset, number.transfer, number.method, number.variant)
        == (*place, method, variant)
    )


def _numbers(table: dict[str, Any]) -> list[Published]:
    if "columns" in table:
        cells = [
            (place, name, text)
            for name, line in table["rows"].items()
            for place, text in zip(table["columns"], str(line).split(), strict=True)
        ]
    else:
        cells = [
            (place, name, text)
            for place, line in table["cells"].items()
            for name, text in zip(table["methods"], str(line).split(), strict=True)
        ]
    spearman = table.get("spearman", ())
    return [
        _number(table["table"], place, name, text, place in spearman)
        for place, name, text in cells
        if text != "-"
    ]


def _number(table: str, place: str, name: str, text: str, spearman: bool) -> Published:
    dataset, _, transfer = place.partition(" -> ")
    method, _, variant = name.partition("/")
    digits = text.rstrip("*+")
    # Percent by its digits: 89.3 / 100 is not the double nearest to 0.893.
    value = float(digits) if spearman else float(f"{digits}e-2")
    metric = "weighted_f1" if dataset == "wafermap" else "accuracy"
    return Published(
        table=table,
        dataset=dataset,
        transfer=transfer or dataset,
        method=method,
        variant=variant or DEFAULT,
        value=value,
        metric="spearman" if spearman else metric,
        mark=text.removeprefix(digits),
    )
