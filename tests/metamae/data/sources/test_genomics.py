"""Genomics: the same ids from raw text and from bytes literals, labels by genus, splits as told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.preparing.splits import shuffled
from metamae.data.sources.genomics import GENERA
from tests.metamae.data.making import made, put, skipping

OTHERS = [f"Genus{number:02d}" for number in range(60)]


def read(number: int) -> str:
    """250 letters, number written in their first eight in base four."""
    return "".join("ACGT"[number >> 2 * place & 3] for place in range(8)) + "ACGT" * 60 + "TT"


def raw_table(genera: list[str], rows: int) -> bytes:
    lines = ["seq\tlabel\tseq_info\tdomain"]
    lines += [f"{read(i)}\t{genera[i % len(genera)]}\tx|{i}\tin" for i in range(rows)]
    return ("\n".join(lines) + "\n").encode()


def dabs_table(count: int, first: int, rows: int, mark: str) -> bytes:
    lines = [",domain,label,seq,seq_info"]
    for i in range(rows):
        lines.append(f"{i},in,{first + i % count},{mark}{read(i)}{mark[1:]},x")
    return ("\n".join(lines) + "\n").encode()


def raw_members() -> dict[str, bytes]:
    return {
        "genomics_ood/before_2011_in_tr.txt": raw_table(list(GENERA), 40),
        "genomics_ood/between_2011-2016_in_val.txt": raw_table(list(GENERA), 30),
        "genomics_ood/between_2011-2016_ood_val.txt": raw_table(OTHERS[::-1], 120),
        "genomics_ood/after_2016_in_test.txt": b"not read",
    }


def number_of(ids: np.ndarray) -> int:
    return int(sum(int(v) << 2 * place for place, v in enumerate(ids[:8])))


@pytest.mark.parametrize("mark", ["b'", ""])
def test_known_genera(mark: str, tmp_path: Path) -> None:
    put(tmp_path / "raw" / "genomics_ood.zip", raw_members())
    put(tmp_path / "dabs/genomics/genomicsPretrain.csv", dabs_table(10, 0, 40, mark))
    put(tmp_path / "dabs/genomics/genomicsTransferID.csv", dabs_table(10, 0, 30, mark))
    raw, dabs = (made("genomics", tmp_path / kind).dataset() for kind in ("raw", "dabs"))
    assert (raw.card["layout"], dabs.card["layout"]) == ("published", "dabs")
    for data in (raw, dabs):
        pretrain = data.need("pretrain").batch(slice(None))["dna"].numpy()
        assert [number_of(row) for row in pretrain] == shuffled(40)[:36].tolist()
        for part, rows in (("train", shuffled(30)[:27]), ("test", shuffled(30)[27:])):
            found = data.need(part)
            ids = found.batch(slice(None))["dna"].numpy()
            assert ids.shape == (len(rows), 250)
            assert [number_of(row) for row in ids] == rows.tolist()
            assert found.labels.tolist() == (rows % 10).tolist()
    assert raw.need_task().classes == GENERA


def test_other_genera_are_numbered_by_name(tmp_path: Path) -> None:
    put(tmp_path / "raw" / "genomics_ood", raw_members())
    raw = made("genomics_ood", tmp_path / "raw").dataset()
    assert raw.pretrain is None
    assert raw.need_task().classes == tuple(OTHERS)
    train = raw.need("train")
    assert train.labels.tolist() == [59 - row % 60 for row in shuffled(120)[:108]]
    put(tmp_path / "dabs/genomics/genomicsTransferOOD.csv", dabs_table(60, 10, 120, "b'"))
    dabs = made("genomics_ood", tmp_path / "dabs").dataset()
    assert dabs.need("train").labels.tolist() == [row % 60 for row in shuffled(120)[:108]]
    with pytest.raises(DataError, match="'genomics_ood' has none: it is for probing only"):
        dabs.need("pretrain")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (read(7), read(7)[:100] + "N" + read(7)[101:], "among ACGT, got 'N' at place 101"),
        (read(7), read(7)[:-1], "a read of 250 letters, got 249"),
    ],
)
def test_an_odd_read_is_named_or_left_out(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    members = raw_members()
    name = "genomics_ood/between_2011-2016_in_val.txt"
    members[name] = members[name].replace(old.encode(), new.encode())
    put(tmp_path / "genomics_ood.zip", members)
    place = "line 9 of between_2011-2016_in_val.txt"
    done, skipped = skipping("genomics", tmp_path, f"{place}: expected .*{expected}")
    assert len(skipped) == 1
    data = done.dataset()
    assert len(data.need("train")) + len(data.need("test")) == 29
    ids = data.need("train").batch(slice(None))["dna"].numpy()
    labels = data.need("train").labels
    assert all(number_of(row) % 10 == label for row, label in zip(ids, labels, strict=True))


def test_an_unknown_genus_is_named(tmp_path: Path) -> None:
    members = raw_members()
    name = "genomics_ood/between_2011-2016_in_val.txt"
    members[name] = members[name].replace(b"Yersinia", b"Yersinja")
    put(tmp_path / "genomics_ood.zip", members)
    with pytest.raises(DataError, match=r"expected genera among .*, got Yersinja"):
        made("genomics", tmp_path)
