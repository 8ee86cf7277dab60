"""`metamae data check FOLDER`: which set every download could be; what `check NAME` asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from metamae import ConfigError
from tests.metamae.data import packing
from tests.metamae.data.making import put
from tests.metamae.data.packing import pack
from tests.metamae.data.preparing.test_prepared import command, higgs
from tests.metamae.data.sources.test_forms import signs_of_kaggle
from tests.metamae.data.sources.test_pamap2 import archive


def lines(folder: Path) -> tuple[int, dict[str, str]]:
    code, text = command("check", str(folder))
    return code, dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def test_every_file_is_told_what_it_could_be(tmp_path: Path) -> None:
    higgs(tmp_path)
    inner = archive(tmp_path / "made" / "PAMAP2_Dataset.zip").read_bytes()
    (tmp_path / "made" / "PAMAP2_Dataset.zip").unlink()
    put(tmp_path / "pamap2+physical+activity+monitoring.zip", {"PAMAP2_Dataset.zip": inner})
    pack(signs_of_kaggle(), tmp_path / "archive.zip")
    pack(packing.cub(), tmp_path / "birds" / "CUB_200_2011.tgz")
    pack(packing.fluent(), tmp_path / "fluent-speech-corpus.zip")
    pack({f"{n}.jpg": b"" for n in "ab"}, tmp_path / "holiday")
    put(tmp_path / "broken.zip", b"PK")
    put(tmp_path / "prepared" / "pfam" / "x.npy", b"")
    code, told = lines(tmp_path)
    assert code == 0
    assert told["HIGGS.csv.gz"] == "higgs"
    assert told["pamap2+physical+activity+monitoring.zip"] == "pamap2"
    assert told["archive.zip"] == (
        "could be traffic_sign, by its content; to be found, call it "
        "GTSRB_Final_Training_Images.zip"
    )
    assert told["birds/CUB_200_2011.tgz"] == "cub"
    assert told["fluent-speech-corpus.zip"] == "fluent_location, fluent_action, fluent_object"
    assert told["holiday/a.jpg"] == "of no full data set that is known here"
    assert told["broken.zip"].startswith("expected a whole archive or file")
    assert not any(name.startswith("prepared") for name in told)
    assert command("check", "higgs", "--data-dir", str(tmp_path), "--partial")[0] == 0
    (tmp_path / "archive.zip").rename(tmp_path / "GTSRB_Final_Training_Images.zip")
    assert command("check", "traffic_sign", "--data-dir", str(tmp_path), "--partial")[0] == 0


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", b"")
    code, told = lines(tmp_path)
    assert (code, told) == (1, {"notes.txt": "of no full data set that is known here"})


def test_a_name_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected --data-dir with higgs, got none"):
        command("check", "higgs")
    with pytest.raises(ConfigError, match="did you mean 'higgs'"):
        command("check", "higs")
