"""Image archives in their published layouts, packed and unpacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources import images
from metamae.data.sources.files import open_files
from tests.metamae.data import packing
from tests.metamae.data.packing import pack, picture

SETS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "cub": (packing.cub, "CUB_200_2011.tgz"),
    "vgg_flowers": (packing.flowers, "102flowers.tgz"),
    "dtd": (packing.dtd, "dtd-r1.0.1.tar.gz"),
    "traffic_sign": (packing.traffic, "GTSRB_Final_Training_Images.zip"),
    "aircraft": (packing.aircraft, "fgvc-aircraft-2013b.tar.gz"),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("packed", [True, False])
def test_every_listed_picture_is_read(name: str, packed: bool, tmp_path: Path) -> None:
    make, archive = SETS[name]
    place = pack(make(), tmp_path / (archive if packed else "folder"))
    with open_files(place, tmp_path) as files:
        found = getattr(images, name)(files)
        for half in (found.halves.train, found.halves.test):
            assert len(half) == len(half.labels) > 0
            assert set(half.labels) <= set(range(len(found.halves.classes)))
            for file in half.files:
                assert found.read(file).shape == (3, 32, 32)


def test_labels_stand_beside_their_pictures(tmp_path: Path) -> None:
    """The red of every made flower is ten times its number; odd numbers are class 2."""
    with open_files(pack(packing.flowers(), tmp_path / "x.tgz"), tmp_path) as files:
        found = images.vgg_flowers(files)
        assert found.halves.classes == ("1", "2")
        for half, size in ((found.halves.train, 8), (found.halves.test, 2)):
            assert len(half) == size
            for file, label in zip(half.files, half.labels, strict=True):
                red = int(found.read(file)[0].mean().round())
                assert red == pytest.approx(10 * int(file[6:11]), abs=2)
                assert label == int(file[6:11]) % 2


def test_gray_and_cmyk_birds_are_rgb(tmp_path: Path) -> None:
    with open_files(pack(packing.cub(), tmp_path / "x.tgz"), tmp_path) as files:
        found = images.cub(files)
        gray = found.read("001.Albatross/b.jpg")
        assert np.ptp(gray[:, 0, 0]) == 0
        assert gray[0, 0, 0] == pytest.approx(20, abs=2)
        # Cyan 30, magenta 0, yellow 225: red is 225, blue is 30.
        np.testing.assert_allclose(found.read("002.Auklet/c.jpg")[:, 9, 9], (225, 255, 30), atol=3)


def test_aircraft_are_cropped_to_their_box(tmp_path: Path) -> None:
    with open_files(pack(packing.aircraft(), tmp_path / "x.tar.gz"), tmp_path) as files:
        found = images.aircraft(files)
        assert found.read("0034309.jpg").min() == 200
        assert found.read("0034958.jpg")[0].max() == pytest.approx(90, abs=2)


def test_one_damaged_picture_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    contents = packing.dtd()
    contents["dtd/images/banded/b_1.jpg"] = picture(5)[:300]
    with open_files(pack(contents, tmp_path / "x.tar.gz"), tmp_path) as files:
        found = images.dtd(files)
        assert found.read("woven/w_1.jpg").shape == (3, 32, 32)
        with pytest.raises(DataError, match=r"expected an image in banded/b_1\.jpg"):
            found.read("banded/b_1.jpg")


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("cub", "CUB_200_2011/train_test_split.txt", r"expected a file train_test_split\.txt"),
        ("vgg_flowers", "imagelabels.mat", r"expected a file imagelabels\.mat in .*, found none"),
        ("dtd", "dtd/labels/val1.txt", r"expected a file labels/val1\.txt"),
        (
            "aircraft",
            "fgvc-aircraft-2013b/data/images_box.txt",
            r"expected a file images_box\.txt",
        ),
    ],
)
def test_a_missing_table_is_named(name: str, absent: str, message: str, tmp_path: Path) -> None:
    contents = SETS[name][0]()
    del contents[absent]
    with (
        open_files(pack(contents, tmp_path / "folder"), tmp_path) as files,
        pytest.raises(DataError, match=message),
    ):
        getattr(images, name)(files)


def test_a_file_that_a_table_lists_but_that_is_gone_is_named(tmp_path: Path) -> None:
    contents = packing.cub()
    del contents["CUB_200_2011/images/001.Albatross/b.jpg"]
    with open_files(pack(contents, tmp_path / "folder"), tmp_path) as files:
        found = images.cub(files)
        with pytest.raises(DataError, match=r"expected a file 001\.Albatross/b\.jpg in "):
            found.read("001.Albatross/b.jpg")


def test_damaged_labels_of_flowers_are_refused(tmp_path: Path) -> None:
    contents = packing.flowers() | {"imagelabels.mat": b"not a mat file"}
    with (
        open_files(pack(contents, tmp_path / "folder"), tmp_path) as files,
        pytest.raises(DataError, match=r"expected an array labels in imagelabels\.mat"),
    ):
        images.vgg_flowers(files)


def test_cifar10_batches_come_in_order(tmp_path: Path) -> None:
    with open_files(pack(packing.cifar10(), tmp_path / "x.tar.gz"), tmp_path) as files:
        train = list(images.cifar10(files, "train"))
        assert [int(x[0, 0, 0, 0]) for x, _ in train] == [1, 2, 3, 4, 5]
        assert [y.tolist() for _, y in train] == [[n, 9] for n in range(1, 6)]
        ((test, labels),) = images.cifar10(files, "test")
        assert test.shape == (1, 3, 32, 32)
        assert labels.tolist() == [9]


def test_both_forms_of_imagenet(tmp_path: Path) -> None:
    batches = {f"train_data_batch_{n}": packing.batch([n], [n]) for n in range(1, 11)}
    with open_files(pack(batches, tmp_path / "Imagenet32_train.zip"), tmp_path) as files:
        assert [int(x[0, 0, 0, 0]) for x, _ in images.imagenet32(files)] == list(range(1, 11))
    tree = {
        "imagenet/train/n02/b.JPEG": picture(2),
        "imagenet/train/n01/a.JPEG": picture(1),
        "imagenet/train/n01/notes.txt": b"",
        "imagenet/validation/n01/v.JPEG": picture(3),
    }
    with open_files(pack(tree, tmp_path / "tree"), tmp_path) as files:
        assert images.imagenet_files(files)[0].files == ["n01/a.JPEG", "n02/b.JPEG"]
