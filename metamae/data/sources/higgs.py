"""HIGGS: 28 numbers per collision, signal or background (Baldi et al. 2014)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import IO

import numpy as np

from metamae.data.dataset import Array, Task
from metamae.data.formats.tables import bounded_lines
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.errors import DataError
from metamae.inputs import Inputs, Tabular

_JETS = tuple(f"jet_{n}_{part}" for n in range(1, 5) for part in ("pt", "eta", "phi", "b-tag"))
RAW_COLUMNS = (
    *("lepton_pT", "lepton_eta", "lepton_phi"),
    *("missing_energy_magnitude", "missing_energy_phi"),
    *_JETS,
    *("m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb"),
)
"""Columns of HIGGS.csv.gz after the label."""

COLUMNS = tuple(sorted(RAW_COLUMNS))
"""Columns of an example: by name, as in the benchmark. MetaMAE's neighbours are next columns."""

LABEL = "class_label"
_BLOCK = 20_000
_LONGEST = 4096


def _inputs(token_size: Sequence[int]) -> Inputs:
    return (Tabular(name="row", columns=len(COLUMNS), column_names=COLUMNS),)


def _prepare(raw: Raw, writer: Writer) -> None:
    rows = writer.array("rows", (len(COLUMNS),), np.float32)
    labels = writer.array("labels", (), np.uint8)
    if "all" in raw.paths:
        with raw.open("all") as file:
            _read(file, rows, labels, published=True)
        first = rows.rows - rows.rows // 10
    else:
        if raw.wants("pretrain"):
            with raw.open("pretrain") as file:
                _read(file, rows, labels, published=False)
        first = rows.rows
        if raw.wants("probe"):
            with raw.open("transfer") as file:
                _read(file, rows, labels, published=False)
    if raw.wants("pretrain"):
        writer.partition("pretrain", {"row": "rows"}, index=ninety_ten(shuffled(first))[0])
    if raw.wants("probe"):
        writer.probe({"row": "rows"}, "labels", *ninety_ten(first + shuffled(rows.rows - first)))


def _read(file: IO[bytes], rows: RowWriter, labels: RowWriter, *, published: bool) -> None:
    """Read one table in blocks; columns are found by name where there is a header.

    The published file has none. Copies of it have one, with names of their own; such a file is in
    the published order unless it has the names of the benchmark.
    """
    with io.TextIOWrapper(file, encoding="ascii", newline="") as text:
        lines = bounded_lines(text, "HIGGS", _LONGEST)
        first = next(lines, "")
        header = next(csv.reader([first]), [])
        named = not published or set(COLUMNS) <= set(header)
        names = header if named else [LABEL, *RAW_COLUMNS]
        if published and first and not named and len(header) != len(names):
            raise DataError(
                f"expected {len(names)} columns in the first line of HIGGS, got {len(header)}"
            )
        has_header = named or (bool(header) and not _is_number(header[0]))
        order = [_place(names, name) for name in COLUMNS]
        label = _place(names, _label_of(names))
        line = int(has_header) + 1
        rest = chain([first] if first and not has_header else [], lines)
        for block in _blocks(rest, len(names), line):
            labels.extend(_labels(block[:, label], line))
            rows.extend(block[:, order].astype(np.float32))
            line += len(block)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _labels(signal: Array, line: int) -> Array:
    wrong = ~np.isin(signal, (0.0, 1.0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DataError(
            f"expected labels 0 and 1, got {signal[place]} in line {line + place} of HIGGS"
        )
    return signal.astype(np.uint8)


def _label_of(names: Sequence[str]) -> str:
    """The label's name: known, or the only named column that is no feature."""
    others = [name for name in names if name and name not in COLUMNS]
    return others[0] if LABEL not in names and len(others) == 1 else LABEL


def _place(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise DataError(
            f"expected a column {name!r} in a HIGGS table, got {', '.join(names)}; "
            "use HIGGS.csv.gz as published, or the benchmark's two tables"
        )
    return list(names).index(name)


def _blocks(text: Iterator[str], columns: int, line: int) -> Iterator[Array]:
    """Numbers of a table, some thousand rows at a time; cells that are empty count as missing."""
    while lines := list(islice(text, _BLOCK)):
        try:
            block = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
        except ValueError as fault:
            raise DataError(
                f"expected {columns} numbers in lines {line} to {line + len(lines) - 1} of HIGGS: "
                f"{fault}; fetch the file again"
            ) from fault
        if block.shape != (len(lines), columns) or not np.isfinite(block).all():
            raise DataError(
                f"expected {columns} finite numbers in lines {line} to {line + len(lines) - 1} of "
                f"HIGGS, got a table {block.shape}; fetch the file again"
            )
        yield block
        line += len(lines)


SOURCES = (
    Source(
        name="higgs",
        modality="tabular",
        origin="HIGGS.csv.gz from the UCI machine learning repository",
        inputs=_inputs,
        layouts=(
            Layout("published", {"all": ("HIGGS.csv.gz", "higgs.zip")}),
            Layout("unpacked", {"all": "HIGGS.csv"}),
            Layout.within(
                "dabs",
                "particle_physics",
                {"pretrain": "higgsPretrain.csv", "transfer": "higgsTransfer.csv"},
            ),
        ),
        contents={
            "all": Content(r"(?i:higgs)\.csv(\.gz)?"),
            "pretrain": Content(r"higgsPretrain\.csv"),
            "transfer": Content(r"higgsTransfer\.csv"),
        },
        totals={"pretrain": 8_910_000, "train": 990_000, "test": 110_000},
        enough_for={"pretrain": ("pretrain",), "probe": ("transfer",)},
        prepare=_prepare,
        task=Task(
            kind="binary", metric="accuracy", classes=("background", "signal"), complete=False
        ),
        pretrained_on="higgs",
        split="first 90 % of the rows to pretraining, last 10 % to the probe; each shuffled with "
        "seed 42 and cut 90/10, the last tenth of pretraining unused. From HIGGS.csv.gz the rows "
        "are in the file's order, not in that of the library the benchmark read it with.",
    ),
)
