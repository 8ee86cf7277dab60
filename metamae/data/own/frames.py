"""Files of rows and named columns, read as texts where the file has no types: CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamae.data.formats.libraries import need_module
from metamae.data.formats.limits import RECORD
from metamae.data.formats.tables import bounded_lines
from metamae.data.own.facts import Asked, Facts, Values, find_name, gather, is_file
from metamae.data.own.listed import read_listed
from metamae.errors import DataError, is_systems, reason_of, shown

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Files that are tables."""

_UNNAMED = re.compile(r"Unnamed: \d+")


@dataclass(frozen=True)
class Frame:
    """A table.

    Attributes:
        data: A pandas data frame whose columns have texts as names.
        name: What it is called in errors.
        typed: Whether its columns had types; those of a CSV file are texts.
        remarks: What was left out while reading.
    """

    data: Any
    name: str
    typed: bool
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data)

    def facts(self, asked: Asked) -> Facts:
        """Columns, or files, that say something of the rows."""
        ids = self.data.index.tolist()

        def read(role: str, name: str) -> Values:
            if name not in self.data.columns and is_file(name):
                return read_listed(Path(name), ids)
            known = list(self.data.columns)
            column: Values = self.data[
                find_name(name, known, f"the column for {role} of {self.name}")
            ].tolist()
            return column

        return gather(asked, len(self), read, ids)

    def without(self, asked: Asked) -> Frame:
        """The columns that are inputs."""
        known = list(self.data.columns)
        for name in asked.drop:
            find_name(name, known, f"columns to drop from {self.name}")
        roles = {asked.label, asked.ids, asked.group, asked.split, *asked.drop}
        kept = [name for name in known if name not in roles]
        if not kept:
            raise DataError(f"expected columns to learn from in {self.name}, all are set aside")
        return Frame(self.data[kept], self.name, self.typed, self.remarks)


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame of pandas, or of a library that makes one of it."""
    return hasattr(value, "columns") and (hasattr(value, "iloc") or hasattr(value, "to_pandas"))


def as_frame(data: Any, name: str) -> Frame:
    """A data frame of pandas, or one that turns into one (polars and others).

    Raises:
        DataError: no rows, columns of several levels, or two columns of one name.
    """
    pandas = need_module("pandas", "tables")
    if not isinstance(data, pandas.DataFrame):
        data = data.to_pandas()
    if data.columns.nlevels > 1:
        raise DataError(f"expected columns of one level in {name}, got {data.columns.nlevels}")
    names = [str(column) for column in data.columns]
    _refuse_repeated(names, name)
    if not len(data):
        raise DataError(f"expected rows in {name}, got none")
    data = data.set_axis(names, axis=1)
    if isinstance(data.index, pandas.RangeIndex):
        data = data.reset_index(drop=True)  # rows count from 0
    return Frame(data, name, typed=True)


def read_frame(path: Path) -> Frame:
    """Read a file.

    Raises:
        DataError: it cannot be read, or has no rows, no names of columns, or lines of another
            number of cells.
        MissingLibraryError: pandas is not installed.
    """
    pandas = need_module("pandas", "tables")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            need_module("pyarrow", "tables")
            data = pandas.read_parquet(path)
            if any(name is not None for name in data.index.names):
                data = data.reset_index()
            return as_frame(data, path.name)
        separator, names = _read_header(path, "\t" if suffix == ".tsv" else ",")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = pandas.read_csv(
                path,
                sep=separator,
                header=0,
                names=names,
                dtype=str,
                na_values=["?"],
                index_col=False,
                skipinitialspace=True,
                encoding="utf-8-sig",
            )
    except (ValueError, LookupError, OSError, ArithmeticError, Warning, csv.Error) as fault:
        if isinstance(fault, DataError) or is_systems(fault):
            raise
        raise DataError(
            f"expected a table that can be read in {path.name}, got a damaged one: "
            f"{reason_of(fault)}"
            + ("; save it as UTF-8" if isinstance(fault, UnicodeDecodeError) else "")
        ) from fault
    if not len(data):
        raise DataError(f"expected rows below the header of {path.name}, got none")
    unnamed = [name for name in names if _UNNAMED.fullmatch(name)]
    remarks = tuple(f"a column without a name is left out ({name})" for name in unnamed)
    return Frame(data.drop(columns=unnamed), path.name, typed=False, remarks=remarks)


def _read_header(path: Path, separator: str) -> tuple[str, list[str]]:
    """Names of the columns; every line has as many cells."""
    csv.field_size_limit(RECORD)
    with path.open(encoding="utf-8-sig", newline="") as text:
        first = text.readline(1 << 20)
        if separator == "," and "," not in first and (";" in first or "\t" in first):
            separator = ";" if ";" in first else "\t"
        text.seek(0)
        rows = csv.reader(
            bounded_lines(text, path.name), delimiter=separator, skipinitialspace=True
        )
        header = [cell.strip() for cell in next(rows, [])]
        if not any(header):
            raise DataError(f"expected a header with names of columns in {path.name}, got none")
        _refuse_numbers(header, path.name)
        names = [cell or f"Unnamed: {number}" for number, cell in enumerate(header)]
        _refuse_repeated(names, path.name)
        for row in rows:
            if len(row) != len(header) and row:
                raise DataError(
                    f"expected {len(header)} cells in line {rows.line_num} of {path.name}, as its "
                    f"header has, got {len(row)}; mend the line"
                )
    return separator, names


def _refuse_numbers(header: Sequence[str], name: str) -> None:
    try:
        [float(cell) for cell in header]
    except ValueError:
        return
    raise DataError(
        f"expected a header with names of columns in {name}, got numbers ({shown(header[0])}, "
        "...); put a line with names on top, or save the numbers as .npy"
    )


def _refuse_repeated(names: Sequence[str], where: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"expected columns with different names in {where}, got more than one called "
            f"{', '.join(map(repr, repeated[:6]))}; rename them"
        )
