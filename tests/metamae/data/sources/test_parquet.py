"""Parquet files of the Hugging Face hub: the same pictures, labels and parts as from archives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources.images.readers import CIFAR10
from tests.metamae.data import making, packing
from tests.metamae.data.making import made, reds
from tests.metamae.data.packing import pack, picture
from tests.metamae.data.sources import test_images

pa = pytest.importorskip("pyarrow")

Row = tuple[bytes, str, int]


def shard(path: Path, rows: Sequence[Row], classes: Sequence[str], image: str = "image") -> None:
    """As the library `datasets` writes them: a struct of bytes and path, classes in the schema."""
    from pyarrow import parquet

    feature = {"dtype": "int64"} if not classes else {"names": list(classes), "_type": "ClassLabel"}
    told = {"info": {"features": {image: {"_type": "Image"}, "label": feature}}}
    pictures = [{"bytes": content, "path": name} for content, name, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {image: pa.array(pictures, kind), "label": pa.array([row[2] for row in rows], pa.int64())}
    ).replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    "folder",
    [
        "cifar10/plain_text",
        "uoft-cs/cifar10/plain_text",
        "hub/datasets--uoft-cs--cifar10/snapshots/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text",
    ],
)
def test_cifar10(folder: str, tmp_path: Path) -> None:
    for split, values in (("train", (10, 20, 30)), ("test", (20,))):
        rows = [(picture(v, "PNG", size=(32, 32)), "", v // 10) for v in values]
        shard(tmp_path / folder / f"{split}-00000-of-00001.parquet", rows, CIFAR10, "img")
    data = made("cifar10", tmp_path).dataset()
    assert reds(data.need("train")).tolist() == [10, 20, 30]
    assert reds(data.need("test")).tolist() == [20]
    assert data.need("train").labels.tolist() == [1, 2, 3]
    assert data.need_task().classes == CIFAR10


def test_textures_have_their_classes_in_order_whatever_the_labels(tmp_path: Path) -> None:
    names = ("woven", "banded")
    parts = {"train": [(50, 0)], "validation": [(100, 1)], "test": [(150, 1)]}
    for split, rows in parts.items():
        content = [(picture(value), "x.jpg", label) for value, label in rows]
        shard(tmp_path / "dtd/data" / f"{split}-00000-of-00001-0a1b.parquet", content, names)
    data = made("dtd", tmp_path).dataset()
    published = test_images.made("dtd", packing.dtd(), tmp_path / "archive").dataset()
    for part in ("train", "test"):
        assert test_images.colours(data, part) == test_images.colours(published, part)
    assert data.need_task().classes == published.need_task().classes


def flowers(folder: Path, named: bool = True) -> None:
    """The ten made flowers, in other splits and out of order."""
    files = packing.flowers()
    labels = [2, 1] * 5
    for split, numbers in (("train", (9, 1, 4)), ("test", (2, 3, 5, 6, 7, 8, 10))):
        names = [f"image_{n:05d}.jpg" for n in numbers]
        rows = [
            (files[f"jpg/{name}"], name if named else "", labels[n - 1] - 1)
            for n, name in zip(numbers, names, strict=True)
        ]
        shard(folder / f"{split}-00000-of-00001.parquet", rows, ("1", "2"))


def test_flowers_are_split_as_published_by_the_names_of_files(tmp_path: Path) -> None:
    flowers(tmp_path / "oxford-flowers" / "data")
    data = made("vgg_flowers", tmp_path).dataset()
    published = test_images.made("vgg_flowers", packing.flowers(), tmp_path / "a").dataset()
    for part in ("train", "test"):
        assert test_images.colours(data, part) == test_images.colours(published, part)


def test_flowers_without_names_are_refused(tmp_path: Path) -> None:
    flowers(tmp_path / "vgg_flowers", named=False)
    with pytest.raises(DataError, match=r"expected names like image_00001\.jpg .* get 102flowers"):
        made("vgg_flowers", tmp_path)


def test_aircraft_need_their_boxes(tmp_path: Path) -> None:
    shard(tmp_path / "aircraft" / "train-00000-of-00001.parquet", [(picture(1), "", 0)], "a")
    with pytest.raises(DataError, match=r"expected boxes .* get fgvc-aircraft-2013b\.tar\.gz"):
        made("aircraft", tmp_path)


def test_imagenet_takes_its_training_files_in_their_order(tmp_path: Path) -> None:
    for number in range(2):
        rows = [(picture(40 * number + 10 * n), "", n) for n in range(2)]
        shard(tmp_path / f"imagenet-1k/data/train-{number:05d}-of-00002.parquet", rows, ())
    shard(tmp_path / "imagenet-1k/data/test-00000-of-00001.parquet", [(picture(9), "", -1)], ())
    pretrain = made("imagenet32", tmp_path).dataset().need("pretrain")
    assert reds(pretrain).tolist() == pytest.approx([0, 10, 40, 50], abs=2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("damaged", "expected a whole archive or file .*train-00000-of-00001.parquet"),
        ("columns", "expected a column image or img in .*, got picture, label"),
        ("classes", "expected the classes airplane"),
        ("twice", "expected one set of Parquet files"),
    ],
)
def test_other_files_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "train-00000-of-00001.parquet"
    rows = [(picture(1), "", 0)]
    classes = CIFAR10[1:] if kind == "classes" else CIFAR10
    shard(path, rows, classes, "picture" if kind == "columns" else "img")
    shard(path.with_name("test-00000-of-00001.parquet"), rows, CIFAR10, "img")
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:-20])
    if kind == "twice":
        shard(tmp_path / "cifar10" / "b" / path.name, rows, CIFAR10, "img")
    with pytest.raises(DataError, match=message):
        made("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "folder"),
    [
        ("cifar10", packing.cifar10, "."),
        ("dtd", packing.dtd, "dtd"),
        ("aircraft", packing.aircraft, "."),
        ("vgg_flowers", packing.flowers, "flowers-102"),
    ],
)
def test_folders_of_torchvision(name: str, make: object, folder: str, tmp_path: Path) -> None:
    """Their archives stay beside what is unpacked; the labels of Flowers lie among the pictures."""
    assert callable(make)
    pack(make(), tmp_path / "a" / folder)
    ours = making.made(name, tmp_path / "a").dataset()
    theirs = test_images.made(name, make(), tmp_path / "b").dataset()
    for part in ("train", "test"):
        assert test_images.colours(ours, part) == test_images.colours(theirs, part)
        labels = ours.need(part).labels  # type: ignore[arg-type]
        assert np.array_equal(labels, theirs.need(part).labels)  # type: ignore[arg-type]
