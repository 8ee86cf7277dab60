"""Genomics: bacterial reads of 250 letters, their genus known (Ren et al. 2019)."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from metamae.data.dataset import Array, Task
from metamae.data.formats.letters import Letters
from metamae.data.formats.tables import plain_text, table_records
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import Writer
from metamae.errors import DataError
from metamae.inputs import Inputs, Tokens

LENGTH = 250
DNA = Letters("ACGT")
GENERA = (
    "Bacillus",
    "Burkholderia",
    "Clostridium",
    "Escherichia",
    "Mycobacterium",
    "Pseudomonas",
    "Salmonella",
    "Staphylococcus",
    "Streptococcus",
    "Yersinia",
)
"""Genera known in training; the benchmark numbers all others from ten on, by name."""

NUMBERED = [str(number) for number in range(60)]
"""The other genera, where the files do not name them."""

_TRAIN = "before_2011_in_tr.txt"
_KNOWN = "between_2011-2016_in_val.txt"
_OTHER = "between_2011-2016_ood_val.txt"


def _inputs(token_size: Sequence[int]) -> Inputs:
    return (Tokens(name="dna", length=LENGTH, vocabulary=4, alphabet=tuple(DNA.letters)),)


def _prepare_known(raw: Raw, writer: Writer) -> None:
    if raw.wants("pretrain"):
        _read(raw, writer, "pretrain", _TRAIN, "pretrain_reads")
        pretraining = ninety_ten(shuffled(writer.arrays["pretrain_reads"].rows))[0]
        writer.partition("pretrain", {"dna": "pretrain_reads"}, index=pretraining)
    if raw.wants("probe"):
        names = _read(raw, writer, "probe", _KNOWN, "reads")
        _write_probe(writer, names, GENERA, first=0)


def _prepare_other(raw: Raw, writer: Writer) -> None:
    names = _read(raw, writer, "probe", _OTHER, "reads")
    genera = sorted({name for name in names if not name.isdigit()})
    _write_probe(writer, names, genera or NUMBERED, first=len(GENERA))
    writer.note(classes=genera or NUMBERED)


def _read(raw: Raw, writer: Writer, role: str, member: str, target: str) -> list[str]:
    """Append the reads of one file to an array; returns their labels, as they stand there."""
    archive = "archive" in raw.paths
    reads = writer.array(target, (LENGTH,), np.uint8)
    known: dict[str, int] = {}
    places = array("L")
    with raw.open("archive" if archive else role, member if archive else "*") as file:
        records = table_records(file, member, ("seq", "label"), "\t" if archive else ",")
        for number, record in enumerate(records, start=2):
            with writer.reading(f"line {number} of {role if not archive else member}"):
                reads.append(_encode(record["seq"]))
                places.append(known.setdefault(plain_text(record["label"]), len(known)))
    names = list(known)
    return [names[place] for place in places]


def _encode(text: str) -> Array:
    letters = plain_text(text)
    if len(letters) != LENGTH:
        raise DataError(f"expected a read of {LENGTH} letters, got {len(letters)}")
    return DNA.encode(letters)


def _write_probe(writer: Writer, names: list[str], genera: Sequence[str], first: int) -> None:
    """Labels by genus name, or by the benchmark's number minus ``first``."""
    numbers = {name: label for label, name in enumerate(genera)}
    numbers |= {str(first + label): label for label in range(len(genera))}
    unknown = sorted(set(names) - numbers.keys())
    if unknown:
        raise DataError(
            f"expected genera among {', '.join(genera)}, got {', '.join(unknown[:3])}; "
            "check that the file is the published one"
        )
    labels = writer.save("labels", np.array([numbers[name] for name in names], np.uint8))
    writer.probe({"dna": "reads"}, labels, *ninety_ten(shuffled(len(names))))


def _source(
    name: str,
    prepare: Callable[[Raw, Writer], None],
    classes: Sequence[str],
    tables: Mapping[str, str],
    totals: Mapping[str, int],
) -> Source:
    return Source(
        name=name,
        modality="genomics",
        origin="genomics_ood.zip of the genomics OOD benchmark (Ren et al. 2019)",
        inputs=_inputs,
        layouts=(
            Layout("published", {"archive": "genomics_ood.zip"}),
            Layout("unpacked", {"archive": "genomics_ood"}),
            Layout.within("dabs", "genomics", tables),
        ),
        contents={
            "archive": Content("|".join(map(re.escape, (_TRAIN, _KNOWN, _OTHER)))),
            **{role: Content(re.escape(file)) for role, file in tables.items()},
        },
        totals=totals,
        enough_for={role: (role,) for role in tables},
        prepare=prepare,
        task=Task.of_classes(classes, complete=False),
        pretrained_on="genomics",
        split="the published training file, shuffled with seed 42, its first 90 % to pretraining; "
        "a validation file shuffled with seed 42, 90/10, to the probe. From the archive the rows "
        "are in the file's order, not in that of the library the benchmark read it with.",
    )


SOURCES = (
    _source(
        "genomics",
        _prepare_known,
        GENERA,
        {"pretrain": "genomicsPretrain.csv", "probe": "genomicsTransferID.csv"},
        {"pretrain": 900_000, "train": 90_000, "test": 10_000},
    ),
    _source(
        "genomics_ood",
        _prepare_other,
        NUMBERED,
        {"probe": "genomicsTransferOOD.csv"},
        {"train": 540_000, "test": 60_000},
    ),
)
