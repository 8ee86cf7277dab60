"""Proteins: Pfam for pretraining, and four tasks of TAPE (Rao et al. 2019)."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from metamae.data.dataset import Array, PartitionName, Task
from metamae.data.formats.letters import Letters
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source, packed_or_not
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import Writer
from metamae.data.sources.tape import members
from metamae.errors import DataError
from metamae.inputs import Inputs, Tokens

LENGTH = 128
RESIDUES = Letters("XARNDCQEGHILKMFPSTWYVUOBZJ")
"""``X`` is an unknown residue, and also the padding."""

CLANS, FOLDS, PAD_CLASS = 623, 1195, 3
TRANSFER_ROWS = 200_000
"""Last rows of Pfam's shuffled validation file, kept for the probe."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf", re.IGNORECASE)


def _inputs(token_size: Sequence[int]) -> Inputs:
    letters = tuple(RESIDUES.letters)
    return (Tokens(name="protein", length=LENGTH, vocabulary=len(letters), alphabet=letters),)


def encode_protein(text: str) -> Array:
    """The first 128 residues, padded with ``X``."""
    if not text:
        raise DataError("expected residues in field 'primary', got none")
    return RESIDUES.encode_to(text, LENGTH, "X")


def numbers(value: Any) -> list[float]:
    """Numbers of a JSON or pickled value, or its text in a table (``[0, 1]``, ``[0 1]``, ``0.5``).

    Example:
        >>> from metamae.data.sources.proteins import numbers
        >>> numbers([0, 2]), numbers("[0, 2]"), numbers("[0.5]"), numbers(7)
        ([0.0, 2.0], [0.0, 2.0], [0.5], [7.0])
    """
    if isinstance(value, str):
        if "..." in value:
            raise DataError("expected all numbers of a list, got text that was cut short with ...")
        return [float(number) for number in _NUMBER.findall(value)]
    if isinstance(value, np.ndarray):
        return [float(number) for number in value.ravel()]
    return [float(number) for number in (value if isinstance(value, list) else [value])]


def _field(record: Mapping[str, Any], field: str) -> Any:
    if field not in record:
        raise DataError(f"expected a field {field!r}, got {', '.join(record)}")
    return record[field]


def _prepare_pfam(raw: Raw, writer: Writer) -> None:
    files = {"pretrain": "pfam_train", "transfer": "pfam_valid"}
    sequences = {key: writer.array(f"{key}_sequences", (LENGTH,), np.uint8) for key in files}
    clans: set[int] = set()
    transfer = array("q")
    for key, name, records in members(raw, files, "clan"):
        for number, record in enumerate(records, start=1):
            with writer.reading(f"record {number} of {name}"):
                row, clan = encode_protein(_field(record, "primary")), int(_field(record, "clan"))
                sequences[key].append(row)
                clans.add(clan) if key == "pretrain" else transfer.append(clan)
    writer.partition("pretrain", {"protein": "pretrain_sequences"})
    _write_clans(raw, writer, sorted(clans), np.frombuffer(transfer, np.int64))


def _write_clans(raw: Raw, writer: Writer, clans: list[int], transfer: Array) -> None:
    """The clan's rank among those of the pretraining file is the label; the map is noted."""
    order = np.arange(len(transfer))
    if "archive" in raw.paths:
        order = shuffled(len(transfer))[-TRANSFER_ROWS:]
    known = np.isin(transfer, clans)
    unknown = int((~known[order]).sum())
    if unknown:
        raw.reporter.say(f"{unknown} rows of clans that pretraining never saw are left out")
    labels = writer.save("labels", np.searchsorted(clans, transfer).astype(np.int32))
    train, test = (index[known[index]] for index in ninety_ten(order))
    writer.probe({"protein": "transfer_sequences"}, labels, train, test)
    writer.note(clans=clans, classes=[str(clan) for clan in clans], rows_of_unknown_clans=unknown)


@dataclass(frozen=True)
class _Reader:
    """Reads one task of TAPE: its training file to train, its validation file to test."""

    name: str
    field: str
    shape: tuple[int, ...]
    dtype: type
    label: Callable[[Any, str], Any]

    def __call__(self, raw: Raw, writer: Writer) -> None:
        files = {part: f"{self.name}_{file}" for part, file in _FILES.items()}
        arrays = {
            part: (
                writer.array(f"{part}_sequences", (LENGTH,), np.uint8),
                writer.array(f"{part}_labels", self.shape, self.dtype),
            )
            for part in files
        }
        for part, name, records in members(raw, files, self.field):
            sequences, labels = arrays[part]
            for number, record in enumerate(records, start=1):
                with writer.reading(f"record {number} of {name}"):
                    text = _field(record, "primary")
                    row, label = encode_protein(text), self.label(_field(record, self.field), text)
                    sequences.append(row)
                    labels.append(label)
        for part in _PARTS:
            writer.partition(part, {"protein": f"{part}_sequences"}, labels=f"{part}_labels")


_PARTS: tuple[PartitionName, PartitionName] = ("train", "test")
_FILES = {"train": "train", "test": "valid"}


def _one(value: Any, text: str) -> float:
    values = numbers(value)
    if len(values) != 1 or not np.isfinite(values[0]):
        raise DataError(f"expected one number, got {value!r}")
    return values[0]


def _fold(value: Any, text: str) -> int:
    label = int(_one(value, text))
    if not 0 <= label < FOLDS:
        raise DataError(f"expected a fold from 0 to {FOLDS - 1}, got {value!r}")
    return label


def _structure(value: Any, text: str) -> Array:
    classes = np.array(numbers(value), np.int64)
    if len(classes) != len(text) or not np.isin(classes, range(PAD_CLASS)).all():
        raise DataError(
            f"expected {len(text)} classes from 0 to {PAD_CLASS - 1}, one per residue, got "
            f"{len(classes)} from {classes.min(initial=0)} to {classes.max(initial=0)}"
        )
    padded = np.full(LENGTH, PAD_CLASS, np.int64)
    padded[: len(classes)] = classes[:LENGTH]
    return padded


def _layouts(archive: str, tables: Mapping[str, str], metamae: str) -> tuple[Layout, ...]:
    return (
        *packed_or_not("archive", {"archive": f"{archive}.tar.gz"}, unpacked=archive),
        Layout.within("dabs", "proteins", tables),
        Layout.within("metamae", metamae, tables),
    )


_source = partial(Source, modality="proteins", inputs=_inputs, pretrained_on="pfam")


def _contents(stem: str, tables: Mapping[str, str]) -> dict[str, Content]:
    return {
        "archive": Content(rf"{stem}_[a-z_]+\.(json|lmdb/(data|lock)\.mdb)"),
        **{role: Content(re.escape(file)) for role, file in tables.items()},
    }


_FORMS = "of TAPE: raw (JSON, data_raw_pytorch/) or LMDB (data_pytorch/), under one name"


def _task(name: str, task: Task, reader: _Reader, rows: tuple[int, int]) -> Source:
    tables = {part: f"{reader.name}_{file}.csv" for part, file in _FILES.items()}
    return _source(
        name=name,
        origin=f"{reader.name}.tar.gz {_FORMS}",
        layouts=_layouts(reader.name, tables, "pfam/transfer"),
        contents=_contents(reader.name, tables),
        totals=dict(zip(_PARTS, rows, strict=True)),
        prepare=reader,
        task=task,
        split="TAPE's training file trains the probe, TAPE's validation file tests it (not TAPE's "
        "test files), as in the benchmark",
    )


_PFAM_TABLES = {"pretrain": "pfam_pretrain_train.csv", "transfer": "pfam_transfer.csv"}

SOURCES = (
    _source(
        name="pfam",
        origin=f"pfam.tar.gz {_FORMS}",
        layouts=_layouts("pfam", _PFAM_TABLES, "pfam"),
        contents=_contents("pfam", _PFAM_TABLES),
        totals={"transfer_sequences": TRANSFER_ROWS},
        prepare=_prepare_pfam,
        task=Task.of_classes(map(str, range(CLANS)), complete=False),
        split="all of pfam_train to pretraining; pfam_valid shuffled with seed 42, its last "
        "200,000 rows cut 90/10 for the probe; labels are ranks among pfam_train's clans",
    ),
    _task(
        "scop",
        Task.of_classes(map(str, range(FOLDS)), complete=False),
        _Reader("remote_homology", "fold_label", (), np.int32, _fold),
        (12_312, 736),
    ),
    _task(
        "secondary_structure",
        Task(
            kind="token_classification",
            metric="accuracy",
            classes=("0", "1", "2", "padding"),
            ignore=PAD_CLASS,
            complete=False,
        ),
        _Reader("secondary_structure", "ss3", (LENGTH,), np.uint8, _structure),
        (8_678, 2_170),
    ),
    _task(
        "stability",
        Task(kind="regression", metric="spearman"),
        _Reader("stability", "stability_score", (), np.float32, _one),
        (53_614, 2_512),
    ),
    _task(
        "fluorescence",
        Task(kind="regression", metric="spearman"),
        _Reader("fluorescence", "log_fluorescence", (), np.float32, _one),
        (21_446, 5_362),
    ),
)
