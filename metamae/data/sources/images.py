"""RGB images: which files of each published archive are read, and how one of them is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from metamae.data.dataset import Array
from metamae.data.sources import image_lists as lists
from metamae.data.sources.files import Files
from metamae.data.sources.listing import Halves, Listing
from metamae.data.sources.pickles import read_batch
from metamae.data.sources.pictures import decode_picture
from metamae.errors import DataError

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
"""Classes of CIFAR-10, in the order of its ``batches.meta``."""


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures and how to read one of them by its name."""

    halves: Halves
    read: Callable[[str], Array]


def _pictures(halves: Halves, files: Files) -> Pictures:
    return Pictures(halves, lambda name: decode_picture(files.read(name), name))


def cub(files: Files) -> Pictures:
    """CUB-200-2011, by its tables; no crop to the birds."""
    root = files.around("images.txt")
    tables = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    return _pictures(lists.cub(*map(root.lines, tables)), root.below("images"))


def vgg_flowers(files: Files) -> Pictures:
    """VGG Flowers: ``jpg/`` and ``imagelabels.mat``, packed together or apart."""
    content = files.around("imagelabels.mat").read("imagelabels.mat")
    try:
        labels = loadmat(io.BytesIO(content))["labels"]
    except (MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as fault:
        raise DataError(f"expected an array labels in imagelabels.mat: {fault}") from fault
    return _pictures(lists.vgg_flowers(labels), files.below("jpg"))


def dtd(files: Files) -> Pictures:
    """Describable Textures: the first of its ten partitions."""
    root = files.around("labels/train1.txt")
    tables = (root.lines(f"labels/{part}1.txt") for part in ("train", "val", "test"))
    return _pictures(lists.dtd(*tables), root.below("images"))


def traffic_sign(files: Files, *, by_track: bool = False) -> Pictures:
    """German Traffic Signs: the training images alone, no crop to the signs."""
    images = files.below("Final_Training/Images")
    return _pictures(lists.traffic_sign(images.ending(".ppm"), by_track=by_track), images)


def aircraft(files: Files) -> Pictures:
    """FGVC Aircraft: variants, cropped to the published boxes."""
    root = files.around("images_variant_trainval.txt")
    tables = ("images_variant_trainval.txt", "images_variant_test.txt", "images_box.txt")
    halves, boxes = lists.aircraft(*map(root.lines, tables))
    images = root.below("images")
    return Pictures(halves, lambda name: decode_picture(images.read(name), name, box=boxes[name]))


def cifar10(files: Files, part: str) -> Iterator[tuple[Array, Array]]:
    """CIFAR-10: batches of images and labels of one part."""
    numbered = tuple(f"data_batch_{number}" for number in range(1, 6))
    return _batches(files, numbered if part == "train" else ("test_batch",))


def imagenet32(files: Files) -> Iterator[tuple[Array, Array]]:
    """The published 32 x 32 archive of ImageNet: ten batches of images and labels from 1."""
    return _batches(files, tuple(f"train_data_batch_{number}" for number in range(1, 11)))


def _batches(files: Files, names: Sequence[str]) -> Iterator[tuple[Array, Array]]:
    root = files.around(names[0])
    for name in names:
        with root.open(name) as file:
            yield read_batch(file, name)


def imagenet_files(files: Files) -> tuple[Listing, Files]:
    """Full-size training images, ``train/CLASS/FILE.JPEG``, by name, and where they are."""
    inside = files.below("train")
    names = (name for name in inside.ending(".jpeg", ".jpg", ".png") if _IN_CLASS.match(name))
    return Listing(sorted(names)), inside


_IN_CLASS = re.compile(r"[^/]+/[^/]+")
