"""Tables and lists are read in constant memory; columns by name; damage with its place."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.formats.tables import json_records, plain_text, table_records
from metamae.data.preparing.splits import shuffled
from metamae.data.sources.higgs import COLUMNS, RAW_COLUMNS
from tests.metamae.data.making import made, put


def higgs_line(label: int, row: int, columns: tuple[str, ...] = RAW_COLUMNS) -> str:
    """A row whose values tell its number and the column: ``row + column / 100``."""
    values = [row + RAW_COLUMNS.index(name) / 100 for name in columns]
    return ",".join(f"{value:.18e}" for value in (label, *values)) + "\n"


def test_higgs_from_the_raw_file(tmp_path: Path) -> None:
    """Columns by name; first 90 % to pretraining, last 10 % to the probe, each shuffled and cut."""
    lines = "".join(higgs_line(i % 2, i) for i in range(300))
    put(tmp_path / "HIGGS.csv.gz", lines.encode())
    data = made("higgs", tmp_path).dataset()
    assert COLUMNS[0] == "jet_1_b-tag"
    assert COLUMNS[-1] == "missing_energy_phi"
    pretrain = data.need("pretrain").batch(slice(None))["row"].numpy()
    assert pretrain[:, 0].round().astype(int).tolist() == shuffled(270)[:243].tolist()
    places = [RAW_COLUMNS.index(name) / 100 for name in COLUMNS]
    row = shuffled(270)[0]
    np.testing.assert_allclose(pretrain[0], row + np.array(places), rtol=1e-6)
    order = 270 + shuffled(30)
    for part, rows in (("train", order[:27]), ("test", order[27:])):
        found = data.need(part)
        assert found.batch(slice(None))["row"][:, 0].round().int().tolist() == rows.tolist()
        assert found.labels.tolist() == (rows % 2).tolist()
    assert data.inputs[0].column_names == COLUMNS


@pytest.mark.parametrize("names", ["other", "benchmark"])
def test_higgs_with_a_header_line(names: str, tmp_path: Path) -> None:
    """With the benchmark's names, by name; with others, in the published order."""
    lines = "".join(higgs_line(i % 2, i) for i in range(200))
    put(tmp_path / "plain" / "HIGGS.csv", lines.encode())
    header = ["Label", *(f"feature {n}" for n in range(28))]
    if names == "benchmark":
        columns = (*RAW_COLUMNS[10:], *RAW_COLUMNS[:10])
        header = ["class_label", *columns]
        lines = "".join(higgs_line(i % 2, i, columns) for i in range(200))
    put(tmp_path / "header" / "HIGGS.csv", (",".join(header) + "\n" + lines).encode())
    plain, other = (made("higgs", tmp_path / kind).dataset() for kind in ("plain", "header"))
    for part in ("pretrain", "train", "test"):
        rows, others = (data.need(part).batch(slice(None))["row"] for data in (plain, other))
        assert np.array_equal(rows, others)


def higgs_tables(data_dir: Path, label: str = "class_label") -> dict[str, Path]:
    """The benchmark's, by role: an index in front, columns sorted."""
    header = ",".join(["", label, *COLUMNS]) + "\n"
    paths = {}
    for role, rows in (("Pretrain", range(20)), ("Transfer", range(20, 40))):
        text = "".join(f"{i}," + higgs_line(i % 2, i, COLUMNS) for i in rows)
        path = data_dir / f"particle_physics/higgs{role}.csv"
        paths[role.lower()] = put(path, (header + text).encode())
    return paths


def test_a_class_of_higgs_may_be_tested_and_never_trained(tmp_path: Path) -> None:
    """As few rows as these may have no signal to train on; the set still opens."""
    signal = {20, 21, *(180 + shuffled(20)[18:])}
    lines = "".join(higgs_line(int(i in signal), i) for i in range(200))
    put(tmp_path / "HIGGS.csv.gz", lines.encode())
    data = made("higgs", tmp_path).dataset()
    assert (data.need("train").labels.max(), data.need("test").labels.min()) == (0, 1)


@pytest.mark.parametrize("label", ["class_label", "target"])
def test_higgs_from_the_benchmarks_tables(label: str, tmp_path: Path) -> None:
    """Found by name, with the same values as from the file."""
    higgs_tables(tmp_path, label)
    data = made("higgs", tmp_path).dataset()
    train = data.need("train")
    first = 20 + int(shuffled(20)[0])
    row = train.batch([0])["row"][0].numpy()
    places = [RAW_COLUMNS.index(name) / 100 for name in COLUMNS]
    np.testing.assert_allclose(row, first + np.array(places), rtol=1e-6)
    assert train.labels[0] == first % 2
    assert [len(data.need(part)) for part in ("pretrain", "train", "test")] == [18, 18, 2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [*lines[:7], "1,2\n", *lines[8:]], "expected 29 numbers in lines 1 to 20"),
        (lambda lines: [*lines[:7], lines[7].replace("1.", "x.", 1)], "numbers in lines 1 to 8"),
        (lambda lines: ["2" + lines[0][1:], *lines[1:]], r"labels 0 and 1, got 2.0 in line 1"),
        (lambda lines: [lines[0], lines[1][: lines[1].rindex(",")] + ",nan\n"], "finite numbers"),
        (lambda lines: [], "examples for the pretrain partition, found none"),
    ],
)
def test_a_damaged_higgs_file_has_a_place(change, expected: str, tmp_path: Path) -> None:
    lines = change([higgs_line(i % 2, i) for i in range(20)])
    put(tmp_path / "HIGGS.csv", "".join(lines).encode())
    with pytest.raises(DataError, match=expected):
        made("higgs", tmp_path)


def test_a_table_without_a_column_of_higgs_is_refused(tmp_path: Path) -> None:
    for file in ("higgsPretrain.csv", "higgsTransfer.csv"):
        put(tmp_path / "particle_physics" / file, b",class_label,m_jj\n0,1,2\n")
    with pytest.raises(DataError, match="expected a column 'jet_1_b-tag'"):
        made("higgs", tmp_path)


def test_a_list_of_any_spacing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records cut by every possible end of a block."""
    records = [{"primary": "MK" * n, "n": [n, -1.5e3], "s": 'a"],['} for n in range(9)]
    for text in (json.dumps(records), json.dumps(records, indent=1), " [ ] "):
        for size in (1, 2, 3, 7, 50, 10**6):
            monkeypatch.setattr("metamae.data.formats.tables._CHUNK", size)
            expected = records if "MK" in text else []
            assert list(json_records(io.BytesIO(text.encode()), "x")) == expected


DOCUMENT = {
    "info": {"annotations": "not the list"},
    "images": [{"id": 1}],
    "annotations": [
        {"id": n, "text": f'säy "annotations": [{n}]', "nested": {"x": [1, {"y": "]"}]}}
        for n in range(50)
    ],
    "last": [],
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_lists_are_streamed(
    chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamae.data.formats.tables._CHUNK", chunk)
    text = json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()
    for key in ("images", "annotations", "last"):
        assert list(json_records(io.BytesIO(text), "x.json", key=key)) == DOCUMENT[key]


def test_streaming_holds_a_part_of_the_file() -> None:
    """The first records come before the end of the file was read."""
    file = io.BytesIO(b'{"annotations": [' + b'{"id": 1}, ' * 1_000_000)
    records = json_records(file, "x.json", key="annotations")
    assert [next(records)["id"] for _ in range(3)] == [1, 1, 1]
    assert file.tell() < 2_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}, {"a"', "expected a whole JSON list in x, it breaks after 1 records"),
        ('[{"a": 1}', "breaks after 1 records"),
        ('{"a": 1}', "expected a JSON list in x"),
        ("", "expected a JSON list in x"),
        ("[1, 2]", "expected objects in x, got 1 as number 1"),
        ('[{"a": 1} nonsense]', "breaks after 1 records"),
    ],
)
def test_a_broken_list_counts_its_records(text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        list(json_records(io.BytesIO(text.encode()), "x"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "expected a list 'annotations' in x.json, found none"),
        ('{"annotations": 3}', "expected a list 'annotations' in x.json, found none"),
        ('{"annotations": [{"id": 1}, {"id"', "expected a whole JSON list in x.json, it breaks"),
        ('{"annotations": [{"id": 1}', "expected a whole JSON list in x.json, it breaks after"),
    ],
)
def test_a_damaged_list_is_named(text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        list(json_records(io.BytesIO(text.encode()), "x.json", key="annotations"))


def test_a_long_list_is_never_whole_in_memory() -> None:
    record = json.dumps({"primary": "M" * 1000}).encode()

    class Endless(io.RawIOBase):
        """A list of 40 MB that is made as it is read."""

        parts = iter([b"[", *[(record + b",") * 1000] * 39, record + b"]"])
        text = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            self.text = self.text or next(self.parts, b"")
            size = min(len(buffer), len(self.text))
            buffer[:size], self.text = self.text[:size], self.text[size:]
            return size

    tracemalloc.start()
    count = sum(1 for _ in json_records(io.BufferedReader(Endless()), "x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 39_001
    assert peak < 12e6


def test_a_row_with_too_few_cells_is_named() -> None:
    good = b"seq\tlabel\tdomain\nACG\tx\ty\n"
    assert list(table_records(io.BytesIO(good), "x", ("label", "seq"), "\t")) == [
        {"label": "x", "seq": "ACG"}
    ]
    with pytest.raises(DataError, match="expected 3 cells in line 3 of x, got 2"):
        list(table_records(io.BytesIO(good + b"A\tB\n"), "x", ("seq",), "\t"))
    with pytest.raises(DataError, match="expected columns seq, clan in x, got seq, label, domain"):
        list(table_records(io.BytesIO(good), "x", ("seq", "clan"), "\t"))


@pytest.mark.parametrize("text", ["b'ACGT'", 'b"ACGT"', "ACGT"])
def test_marks_of_a_bytes_literal_are_dropped(text: str) -> None:
    assert plain_text(text) == "ACGT"


def test_letters_that_look_like_marks_stay() -> None:
    assert [plain_text(text) for text in ("bACGT", "b'", "'A'")] == ["bACGT", "b'", "'A'"]
