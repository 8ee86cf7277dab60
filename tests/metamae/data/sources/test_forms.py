"""Archives by the names and in the wrappings in which people have them: the same set from each."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamae import DataError
from tests.metamae.data import packing
from tests.metamae.data.formats.test_tables import higgs_line
from tests.metamae.data.making import made, put, reds
from tests.metamae.data.packing import old_table, pack, picture
from tests.metamae.data.sources.test_images_by_table import check_wafers, eurosat_members, wafers
from tests.metamae.data.sources.test_pamap2 import BOUTS, archive, recording


def zipped(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


HIGGS = "".join(higgs_line(i % 2, i) for i in range(200)).encode()


@pytest.mark.parametrize(
    ("place", "contents"),
    [
        ("HIGGS.csv.gz", HIGGS),
        ("HIGGS.csv.zip", {"HIGGS.csv": HIGGS}),
        ("higgs.zip", {"HIGGS.csv.gz": gzip.compress(HIGGS)}),
        ("higgs/higgs.zip", {"HIGGS.csv.gz": gzip.compress(HIGGS)}),
        ("downloads/HIGGS.csv.gz", HIGGS),
        ("higgs.tar.gz", {"HIGGS.csv": HIGGS}),
    ],
)
def test_higgs(place: str, contents: Mapping[str, bytes] | bytes, tmp_path: Path) -> None:
    """As UCI serves it (a table inside of an archive), and as others pack it."""
    put(tmp_path / place, contents)
    data = made("higgs", tmp_path).dataset()
    assert [len(data.need(part)) for part in ("pretrain", "train", "test")] == [162, 18, 2]
    assert {*(tmp_path / "prepared" / "higgs").glob("*")} == {
        *(tmp_path / "prepared" / "higgs" / name for name in FILES_OF_HIGGS)
    }


FILES_OF_HIGGS = (
    *("rows.npy", "labels.npy", "manifest.json"),
    *(f"{part}_index.npy" for part in ("pretrain", "train", "test")),
)


def test_pamap2_in_a_zip_in_a_zip(tmp_path: Path) -> None:
    """UCI's archive has the published one inside; others have its folder at the top."""
    inner = archive(tmp_path / "made" / "PAMAP2_Dataset.zip").read_bytes()
    outer = {"readme.pdf": b"", "PAMAP2_Dataset.zip": inner}
    put(tmp_path / "a" / "pamap2+physical+activity+monitoring.zip", outer)
    archive(tmp_path / "b", prefix="")
    nested, top = (made("pamap2", tmp_path / kind).array("recordings") for kind in "ab")
    assert len(nested) == 9 * sum(rows for activity, rows in BOUTS if activity)
    assert np.array_equal(nested, top)


def test_optional_recordings_of_pamap2_are_never_taken_for_others(tmp_path: Path) -> None:
    archive(tmp_path, prefix="")
    (tmp_path / "Protocol" / "subject105.dat").unlink()
    put(tmp_path / "Optional" / "subject105.dat", recording(105, BOUTS))
    with pytest.raises(DataError, match=r"expected one file subject105\.dat in .*Protocol"):
        made("pamap2", tmp_path)


@pytest.mark.parametrize("place", ["EuroSAT_MS.zip", "EuroSAT_MS", "EuroSATallBands.tar.gz"])
def test_eurosat_of_zenodo(place: str, tmp_path: Path) -> None:
    members = {"/".join(name.split("/")[-2:]): one for name, one in eurosat_members(10).items()}
    if place.endswith(".zip"):
        members = {f"EuroSAT_MS/{name}": content for name, content in members.items()}
    put(tmp_path / place, members)
    assert made("eurosat", tmp_path).manifest["arrays"]["images"]["shape"][0] == 100


@pytest.mark.parametrize("place", ["LSWMD.pkl.zip", "wm811k-wafer-map.zip"])
def test_a_table_of_wafers_in_a_zip(place: str, tmp_path: Path) -> None:
    maps, kinds = map(list, zip(*wafers(), strict=True))
    table = old_table({"waferMap": maps, "failureType": [kind or [] for kind in kinds]})
    put(tmp_path / place, {"LSWMD.pkl": table})
    check_wafers(tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "place", "rows"),
    [
        ("fluent_action", packing.fluent, "jf8398hf30f0381738rucj3828chfdnchs.tar.gz", 3),
        ("fluent_action", packing.fluent, "fluent-speech-corpus.zip", 3),
        ("google_speech", packing.google_speech, "SpeechCommands/speech_commands_v0.02", 3),
        ("google_speech", packing.google_speech, "SpeechCommands/speech_commands_v0.02.tar.gz", 3),
    ],
)
def test_speech_by_other_names(
    name: str, make: Callable[[], Mapping[str, bytes]], place: str, rows: int, tmp_path: Path
) -> None:
    pytest.importorskip("soundfile")
    pack(make(), tmp_path / place)
    assert len(made(name, tmp_path).dataset().need("train")) == rows


def test_librispeech_for_its_probe_alone(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    pack(packing.librispeech("dev-clean"), tmp_path / "dev-clean.tar.gz")
    with pytest.raises(DataError, match="what is there is enough for --only probe"):
        made("librispeech", tmp_path)
    data = made("librispeech", tmp_path, only="probe").dataset()
    assert data.pretrain is None
    assert (len(data.need("train")), len(data.need("test"))) == (8, 2)


def signs_of_kaggle() -> dict[str, bytes]:
    """Classes without zeros in front, and class, track and frame in the name of a file."""
    files = {}
    for name, content in packing.traffic().items():
        if not name.endswith(".ppm"):
            continue
        sign, file = name.split("/")[-2:]
        with Image.open(io.BytesIO(content)) as image:
            png = packing.encode_picture(image, "PNG")
        files[f"Train/{int(sign)}/{sign}_{file.removesuffix('.ppm')}.png"] = png
    return files | {"Test/00000.png": picture(1, "PNG"), "Train.csv": b"Width\n"}


@pytest.mark.parametrize("place", [".", "gtsrb-german-traffic-sign.zip", "archive"])
def test_signs_of_kaggle_have_the_published_split(place: str, tmp_path: Path) -> None:
    pack(packing.traffic(), tmp_path / "a" / "GTSRB_Final_Training_Images.zip")
    pack(signs_of_kaggle(), tmp_path / "b" / place)
    ours, theirs = (made("traffic_sign", tmp_path / kind).dataset() for kind in "ab")
    for part in ("train", "test"):
        a, b = ours.need(part), theirs.need(part)
        assert reds(a).tolist() == reds(b).tolist()
        assert np.array_equal(a.labels, b.labels)


@pytest.mark.parametrize("place", ["gtsrb/GTSRB/Training", "GTSRB/Training"])
def test_torchvisions_signs_are_another_set(place: str, tmp_path: Path) -> None:
    files = {"/".join(name.split("/")[-2:]): one for name, one in packing.traffic().items()}
    pack(files, tmp_path / place)
    with pytest.raises(DataError, match="GTSRB/Training is another set, of 26,640 images"):
        made("traffic_sign", tmp_path)
    pack(files, tmp_path / "natural_images/traffic_sign" / "GTSRB/Training")
    with pytest.raises(DataError, match=r"expected the final training set .* is another set"):
        made("traffic_sign", tmp_path)


@pytest.mark.parametrize("place", ["ILSVRC", "imagenet-object-localization-challenge.zip"])
def test_imagenet_of_kaggle(place: str, tmp_path: Path) -> None:
    """Training images alone, from a folder or an archive that has others beside them."""
    root = "" if place == "ILSVRC" else "ILSVRC/"
    files = {
        f"{root}Data/CLS-LOC/train/n0000000{n}/n0000000{n}_{m}.JPEG": picture(40 * n + 10 * m)
        for n in (1, 2)
        for m in (0, 1)
    }
    files |= {f"{root}Data/CLS-LOC/val/ILSVRC2012_val_0000000{n}.JPEG": picture(9) for n in (1, 2)}
    pack(files, tmp_path / place)
    pretrain = made("imagenet32", tmp_path).dataset().need("pretrain")
    assert reds(pretrain).tolist() == pytest.approx([40, 50, 80, 90], abs=2)


def test_a_name_with_another_content_is_no_set(tmp_path: Path) -> None:
    """A folder that happens to be called like a set of pictures, one level down."""
    put(tmp_path / "mine" / "Train" / "a.txt", b"")
    with pytest.raises(DataError, match=r"missing .*\(found mine/Train"):
        made("traffic_sign", tmp_path)
    put(tmp_path / "higgs.zip", zipped({"HIGGS.txt": b"1"}))
    with pytest.raises(DataError, match="expected 29 columns in the first line of HIGGS, got 1"):
        made("higgs", tmp_path)
