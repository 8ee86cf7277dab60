"""Proteins: cut and padded sequences, labels of four tasks, clans ranked, lists as JSON or text."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from metamae import DataError
from metamae.config.sections import ProbeConfig
from metamae.data.preparing.splits import shuffled
from metamae.data.sources import proteins
from metamae.errors import MissingLibraryError
from metamae.evaluation.features import Features
from metamae.evaluation.probe import fit_probe
from tests.metamae.data.making import as_json, made, put, skipping

RESIDUES = "XARNDCQEGHILKMFPSTWYVUOBZJ"
LONG, SHORT = "MKV" * 60, "JX"


def pfam(rows: int, first: int = 0) -> list[dict[str, Any]]:
    """Clans 30, 10, 20 in turn; the sequence tells the row."""
    return [
        {"primary": "A" * (first + i + 1), "clan": (30, 10, 20)[i % 3], "family": 7, "id": "x"}
        for i in range(rows)
    ]


def task(field: str, values: list[Any]) -> list[dict[str, Any]]:
    return [
        {"primary": "AR" * (i + 1), field: value, "protein_length": 2 * i + 2}
        for i, value in enumerate(values)
    ]


def lengths(batch: Any) -> list[int]:
    return (batch["protein"] == 1).sum(1).tolist()  # A is 1


def test_pfam_from_the_archive(tmp_path: Path) -> None:
    """All of pfam_train pretrains; labels rank its clans; pfam_valid is shuffled and cut."""
    members = {
        "pfam/pfam_valid.json": as_json(pfam(20)),
        "pfam/pfam_holdout.json": b"not read",
        "pfam/pfam_train.json": as_json(pfam(12)),
    }
    put(tmp_path / "pfam.tar.gz", members)
    done = made("pfam", tmp_path)
    data = done.dataset()
    assert lengths(data.need("pretrain").batch(slice(None))) == list(range(1, 13))
    order = shuffled(20)
    for part, rows in (("train", order[:18]), ("test", order[18:])):
        found = data.need(part)
        assert lengths(found.batch(slice(None))) == (rows + 1).tolist()
        assert found.labels.tolist() == [(2, 0, 1)[row % 3] for row in rows]
    assert done.facts["clans"] == [10, 20, 30]
    assert data.need_task().classes == ("10", "20", "30")


def test_only_the_last_rows_of_a_large_validation_file_are_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proteins, "TRANSFER_ROWS", 20)
    valid = [*pfam(29), {"primary": "AAA", "clan": 99}]
    put(tmp_path / "pfam" / "pfam_train.json", as_json(pfam(12)))
    put(tmp_path / "pfam" / "pfam_valid.json", as_json(valid))
    data = made("pfam", tmp_path).dataset()
    expected = [row for row in shuffled(30)[-20:] if row != 29]  # nobody knows clan 99
    train, test = data.need("train"), data.need("test")
    found = lengths(train.batch(slice(None))) + lengths(test.batch(slice(None)))
    assert found == [row + 1 for row in expected]
    assert data.card["facts"]["rows_of_unknown_clans"] == 20 - len(expected)


def test_pfam_from_the_benchmarks_tables(tmp_path: Path) -> None:
    def table(records: list[dict[str, Any]]) -> bytes:
        rows = [f"{i},{r['clan']},{r['primary']}" for i, r in enumerate(records)]
        return ("\n".join([",clan,primary", *rows]) + "\n").encode()

    put(tmp_path / "proteins/pfam_pretrain_train.csv", table(pfam(12)))
    put(tmp_path / "proteins/pfam_transfer.csv", table(pfam(20)))
    data = made("pfam", tmp_path).dataset()
    assert lengths(data.need("train").batch(slice(None))) == list(range(1, 19))
    assert data.need("test").labels.tolist() == [2, 0]


@pytest.mark.parametrize("kind", ["json", "commas", "blanks"])
def test_tasks_of_tape(kind: str, tmp_path: Path) -> None:
    """Training file to train, validation file to test; lists as JSON, or as text in a table."""
    structures = [[0, 1], [2, 2, 1, 0], [1, 1, 1, 2, 2, 2]]
    sets = {
        "scop": ("remote_homology", "fold_label", [3, 1194, 0], [3, 1194, 0]),
        "stability": ("stability", "stability_score", [[0.5], [-1.25], [2e-3]], [0.5, -1.25, 2e-3]),
        "fluorescence": ("fluorescence", "log_fluorescence", [[3.5], [1.0], [2]], [3.5, 1.0, 2.0]),
        "secondary_structure": (
            "secondary_structure",
            "ss3",
            structures,
            [row + [3] * (128 - len(row)) for row in structures],
        ),
    }
    for name, (stem, field, values, expected) in sets.items():
        for file, rows in (("train", values), ("valid", values[:2])):
            records = task(field, rows)
            if kind == "json":
                put(tmp_path / stem / stem / f"{stem}_{file}.json", as_json(records))
                continue
            lines = [f",{field},primary"]
            for i, record in enumerate(records):
                text = str(record[field])
                text = text.replace(",", "") if kind == "blanks" else text
                lines.append(f'{i},"{text}",{record["primary"]}')
            put(tmp_path / f"proteins/{stem}_{file}.csv", "\n".join(lines).encode())
        data = made(name, tmp_path).dataset()
        np.testing.assert_allclose(data.need("train").labels, np.array(expected), rtol=1e-6)
        np.testing.assert_allclose(data.need("test").labels, np.array(expected[:2]), rtol=1e-6)
        assert data.pretrain is None
        assert lengths(data.need("train").batch(slice(None))) == [1, 2, 3]
        assert data.need_task().outputs == {"scop": 1195, "secondary_structure": 4}.get(name, 1)


def test_a_regression_set_runs_through_a_probe(tmp_path: Path) -> None:
    """Raw labels of a memory map go into the published probe as they are."""
    values = [[float(i)] for i in range(20)]
    for file in ("train", "valid"):
        records = as_json(task("stability_score", values))
        put(tmp_path / "stability" / f"stability_{file}.json", records)
    data = made("stability", tmp_path).dataset()
    inputs = (data.need("train").batch(slice(None))["protein"] == 1).float()
    result = fit_probe(Features.of(data, inputs, inputs), ProbeConfig(learning_rate=0.1, epochs=20))
    assert (result.metric, result.value > 0.9) == ("spearman", True)


def test_sequences_are_cut_and_padded() -> None:
    assert proteins.encode_protein(RESIDUES).tolist()[:26] == list(range(26))
    assert proteins.encode_protein(SHORT).tolist() == [25, 0] + [0] * 126
    assert proteins.encode_protein(LONG).tolist() == [13, 12, 20] * 42 + [13, 12]
    with pytest.raises(DataError, match="got '-' at place 3"):
        proteins.encode_protein("MK-")


def test_a_long_structure_is_cut_with_its_sequence() -> None:
    row = proteins._structure([0, 1] * 90, "AR" * 90)
    assert row.tolist() == [0, 1] * 64


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"primary": "MK*", "ss3": [0, 1, 2]}, "got '\\*' at place 3"),
        ({"primary": "", "ss3": []}, "expected residues in field 'primary', got none"),
        ({"primary": "MK", "ss3": [0]}, "expected 2 classes from 0 to 2, one per residue, got 1"),
        ({"primary": "MK", "ss3": [0, 3]}, "got 2 from 0 to 3"),
        ({"primary": "MK"}, "expected a field 'ss3', got primary"),
        ({"primary": "MK", "ss3": "[0 ... 1]"}, "cut short"),
    ],
)
def test_an_odd_record_is_named_or_left_out(
    record: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    good = task("ss3", [[0, 1], [2, 2, 1, 0]])
    name = "secondary_structure"
    members = {
        f"{name}/{name}_train.json": as_json([good[0], record, good[1]]),
        f"{name}/{name}_valid.json": as_json(good),
    }
    put(tmp_path / f"{name}.tar.gz", members)
    done, skipped = skipping(name, tmp_path, f"record 2 of .*train.json: .*{expected}")
    assert len(skipped) == 1
    assert len(done.dataset().need("train")) == 2


@pytest.mark.parametrize("value", [1195, -1, [1, 2], "nan"])
def test_a_fold_outside_the_list_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        proteins._fold(value, "M")


def test_an_archive_without_a_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "stability.tar.gz", {"stability/stability_train.json": b"[]"})
    with pytest.raises(DataError, match=r"expected stability_valid.json in .*stability.tar.gz"):
        made("stability", tmp_path)


def lmdb_archive(path: Path, stem: str, parts: dict[str, list[dict[str, Any]]]) -> Path:
    """TAPE's other archive of the same name: LMDB folders of pickled records."""
    lmdb = pytest.importorskip("lmdb")
    members = {}
    for part, records in parts.items():
        with TemporaryDirectory() as folder:
            with (
                lmdb.open(folder, map_size=1 << 20) as environment,
                environment.begin(write=True) as transaction,
            ):
                for number, record in enumerate(records):
                    transaction.put(str(number).encode(), pickle.dumps(record, 4))
                transaction.put(b"num_examples", pickle.dumps(len(records), 4))
            for file in Path(folder).iterdir():
                members[f"{stem}/{stem}_{part}.lmdb/{file.name}"] = file.read_bytes()
    return put(path, members)


@pytest.mark.parametrize("place", ["secondary_structure.tar.gz", "."])
def test_the_lmdb_archive_of_the_same_name(place: str, tmp_path: Path) -> None:
    """Records hold arrays where the JSON ones hold lists."""
    structures = [[0, 1], [2, 2, 1, 0], [1, 1, 1, 2, 2, 2]] + [[0, 1] * n for n in range(4, 12)]
    records = task("ss3", [np.array(one) for one in structures])
    records = [record | {"valid_mask": np.ones(3, bool), "id": b"1abc"} for record in records]
    lmdb_archive(
        tmp_path / "a" / place, "secondary_structure", {"train": records, "valid": records}
    )
    plain = as_json(task("ss3", structures))
    files = {f"secondary_structure/secondary_structure_{p}.json": plain for p in ("train", "valid")}
    put(tmp_path / "b" / "secondary_structure.tar.gz", files)
    ours, theirs = (made("secondary_structure", tmp_path / kind).dataset() for kind in "ab")
    for part in ("train", "test"):
        a, b = ours.need(part), theirs.need(part)
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.batch(slice(None))["protein"], b.batch(slice(None))["protein"])
    assert not list((tmp_path / "a" / "prepared" / "secondary_structure").glob("unpacked*"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"1", pickle.dumps(print), r"pickled record in .*lmdb/data.mdb, 1: it asks for builtins"),
        (b"1", pickle.dumps([1]), "expected a record with number 1"),
        (b"num_examples", pickle.dumps(4), "expected a record '3' in .*, found none"),
        (b"num_examples", pickle.dumps("4"), "expected the number of records"),
    ],
)
def test_an_lmdb_that_is_damaged(key: bytes, value: bytes, message: str, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    records = task("log_fluorescence", [[1.0], [2.0], [3.0]])
    lmdb_archive(tmp_path / ".", "fluorescence", {"train": records, "valid": records})
    folder = tmp_path / "fluorescence" / "fluorescence_train.lmdb"
    with (
        lmdb.open(str(folder), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key, value)
    with pytest.raises(DataError, match=message):
        made("fluorescence", tmp_path)


def test_without_lmdb_the_other_archive_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = task("log_fluorescence", [[1.0], [2.0], [3.0]])
    lmdb_archive(tmp_path / ".", "fluorescence", {"train": records, "valid": records})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MissingLibraryError, match=r"metamae\[data\].*data_raw_pytorch/fluoresc"):
        made("fluorescence", tmp_path)
