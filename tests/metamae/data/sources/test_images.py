"""Image archives in every accepted layout: prepared, opened, and read back with their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metamae import DataError, load_dataset
from metamae.data.dataset import Dataset
from metamae.data.preparing.prepared import Prepared
from tests.metamae.data import making, packing
from tests.metamae.data.making import reds, skipping
from tests.metamae.data.packing import Contents, pack, picture

# Contents, published archive, and the folders of DABS and of MetaMAE that hold the same.
SETS = {
    "cifar10": (packing.cifar10, "cifar-10-python.tar.gz", "natural_images/cifar10", "."),
    "cub": (packing.cub, "CUB_200_2011.tgz", "natural_images/cu_birds", "."),
    "dtd": (packing.dtd, "dtd-r1.0.1.tar.gz", "natural_images/dtd", "imagenet"),
    "traffic_sign": (
        packing.traffic,
        "GTSRB_Final_Training_Images.zip",
        "natural_images/traffic_sign",
        "imagenet/traffic_sign",
    ),
    "aircraft": (
        packing.aircraft,
        "fgvc-aircraft-2013b.tar.gz",
        "natural_images/aircraft",
        "imagenet",
    ),
    "vgg_flowers": (packing.flowers, "102flowers.tgz", "natural_images/flowers", "flowers102"),
}


def place(name: str, contents: Contents, data_dir: Path) -> None:
    """The published archives of a set."""
    if name == "vgg_flowers":
        pack({"imagelabels.mat": contents["imagelabels.mat"]}, data_dir)
        contents = {file: content for file, content in contents.items() if "/" in file}
    pack(contents, data_dir / SETS[name][1])


def made(name: str, contents: Contents, data_dir: Path, **options: str) -> Prepared:
    """Prepare a set from its published archives."""
    place(name, contents, data_dir)
    return making.made(name, data_dir, options=options)


def colours(data: Dataset, part: str) -> list[tuple[int, int]]:
    """Mean red of every image, in bytes, and its label."""
    rows = data.need(part)  # type: ignore[arg-type]
    pairs = zip(reds(rows).tolist(), rows.labels, strict=True)  # type: ignore[arg-type]
    return [(round(red), int(label)) for red, label in pairs]


@pytest.mark.parametrize("name", SETS)
def test_every_layout_gives_the_same_set(name: str, tmp_path: Path) -> None:
    make, _, *folders = SETS[name]
    made(name, make(), tmp_path / "published")
    published = load_dataset(name, data_dir=tmp_path / "published")
    assert published.stands_for == "imagenet32"
    assert published.inputs[0].tokens == 64
    assert published.card["layout"] == "published"
    for number, folder in enumerate(folders):
        data_dir = tmp_path / str(number)
        pack(make(), data_dir / folder)
        other = making.made(name, data_dir).dataset()
        assert other.card["layout"] != "published"
        for part in ("train", "test"):
            assert colours(other, part) == colours(published, part)
        assert other.need("train").batch([0])["image"].shape == (1, 3, 32, 32)


def test_labels_stand_beside_their_pictures(tmp_path: Path) -> None:
    """The red of made flower n is 10 n; odd flowers are of class 2."""
    data = made("vgg_flowers", packing.flowers(), tmp_path).dataset()
    assert data.need_task().classes == ("1", "2")
    train, test = colours(data, "train"), colours(data, "test")
    assert (len(train), len(test)) == (8, 2)
    for red, label in train + test:
        number = round(red / 10)
        assert red == pytest.approx(10 * number, abs=2)
        assert label == number % 2
    assert sorted(round(red / 10) for red, _ in train + test) == list(range(1, 11))


def test_cifar10_has_its_official_parts(tmp_path: Path) -> None:
    data = made("cifar10", packing.cifar10(), tmp_path).dataset()
    expected = [pair for n in range(1, 6) for pair in ((n, n), (10 * n, 9))]
    assert colours(data, "train") == expected
    assert colours(data, "test") == [(77, 9)]
    assert data.need_task().classes[3] == "cat"


def test_gray_and_cmyk_birds_are_rgb(tmp_path: Path) -> None:
    data = made("cub", packing.cub(), tmp_path).dataset()
    test = data.need("test").batch([0, 1])["image"] * 255
    np.testing.assert_allclose(test[0, :, 9, 9], (20, 20, 20), atol=2)
    np.testing.assert_allclose(test[1, :, 9, 9], (225, 255, 30), atol=3)  # cyan 30, yellow 225


def test_aircraft_are_cropped_to_their_box(tmp_path: Path) -> None:
    data = made("aircraft", packing.aircraft(), tmp_path).dataset()
    assert data.need_task().classes == ("707-320", "Tu-154")  # as many as the lists name
    assert float(data.need("train").batch([0])["image"].min()) == pytest.approx(200 / 255)


@pytest.mark.parametrize(("split", "shared"), [("frames", True), ("tracks", False)])
def test_signs_are_split_by_frame_or_by_track(split: str, shared: bool, tmp_path: Path) -> None:
    found = made("traffic_sign", packing.traffic(), tmp_path, split=split)
    data = found.dataset()
    assert found.options == {"split": split}

    def tracks(part: str) -> set[int]:
        return {red // 10 for red, _ in colours(data, part)}

    assert (len(data.need("train")), len(data.need("test"))) == (16, 4)
    assert bool(tracks("train") & tracks("test")) == shared


def test_one_damaged_picture_is_fatal_or_left_out(tmp_path: Path) -> None:
    contents = packing.traffic()
    contents["GTSRB/Final_Training/Images/00001/00002_00001.ppm"] = b"P6 40 30 255\nshort"
    place("traffic_sign", contents, tmp_path)
    name = "00001/00002_00001.ppm"
    done, skipped = skipping("traffic_sign", tmp_path, f"{name}: .*--on-error skip")
    assert skipped == [name]
    data = done.dataset()
    assert len(data.need("train")) + len(data.need("test")) == 19
    assert {label for _, label in colours(data, "test")} == {0, 1}


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("cub", "CUB_200_2011/train_test_split.txt", r"one file train_test_split\.txt .* none"),
        ("dtd", "dtd/labels/val1.txt", r"one file labels/val1\.txt in .* none"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_box.txt", r"one file images_box\.txt"),
        ("cifar10", "cifar-10-batches-py/data_batch_3", "readable data_batch_3: it is not there"),
        ("cub", "CUB_200_2011/images/001.Albatross/b.jpg", r"readable 001.Albatross/b.jpg: it is"),
    ],
)
def test_a_missing_file_is_named(name: str, absent: str, message: str, tmp_path: Path) -> None:
    contents = SETS[name][0]()
    del contents[absent]
    with pytest.raises(DataError, match=message):
        made(name, contents, tmp_path)


def test_flowers_need_their_labels(tmp_path: Path) -> None:
    contents = packing.flowers() | {"imagelabels.mat": b"not a mat file"}
    with pytest.raises(DataError, match=r"expected an array labels in imagelabels\.mat"):
        made("vgg_flowers", contents, tmp_path)
    (tmp_path / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"missing .*imagelabels\.mat; get 102flowers\.tgz and"):
        making.made("vgg_flowers", tmp_path)


def class_archives() -> dict[str, bytes]:
    """The published archive of ImageNet: one inner archive a class."""
    return {
        f"n0{number}.tar": packing.tar(
            {f"n0{number}_{image}.JPEG": picture(40 * number + 10 * image) for image in (1, 0)}
        )
        for number in (2, 1)
    }


def class_folders(root: str) -> dict[str, bytes]:
    files = {
        f"{root}/n0{number}/n0{number}_{image}.JPEG": picture(40 * number + 10 * image)
        for number in (1, 2)
        for image in (0, 1)
    }
    other = "natural_images/imagenet/validation/n/v.JPEG"
    return files | {f"{root}/n01/notes.txt": b"", other: b""}


@pytest.mark.parametrize("layout", ["published", "dabs", "metamae", "batches"])
def test_imagenet_at_full_size_or_small(layout: str, tmp_path: Path) -> None:
    if layout == "published":
        pack(class_archives(), tmp_path / "ILSVRC2012_img_train.tar")
    elif layout == "batches":
        small = {f"train_data_batch_{n}": packing.batch([n, 20], [n, 1]) for n in range(1, 11)}
        pack(small, tmp_path / "Imagenet32_train.zip")
    else:
        root = "natural_images/imagenet/train" if layout == "dabs" else "train"
        pack(class_folders(root), tmp_path)
    data = making.made("imagenet32", tmp_path).dataset()
    assert data.card["layout"] == layout
    assert data.task is None
    expected = [40, 50, 80, 90]
    if layout == "batches":
        expected = [value for n in range(1, 11) for value in (n, 20)]
    assert reds(data.need("pretrain")).tolist() == pytest.approx(expected, abs=2)
