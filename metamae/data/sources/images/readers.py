"""Readers of the labelled RGB sets: published files to rows and labels."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from scipy.io import loadmat

from metamae.data.dataset import Array
from metamae.data.formats.pictures import decode_picture
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.views import View, lines, store_halves, tables
from metamae.data.preparing.writer import Writer
from metamae.data.sources.images import lists as lists
from metamae.data.sources.images.arrays import image_array, small_picture
from metamae.data.sources.images.imagenet32 import read_member
from metamae.data.sources.images.parquet import ROLE
from metamae.errors import DataError, reason_of

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""Classes of CIFAR-10, in the order of its ``batches.meta``."""


SIGN = r"\d{1,5}/(\d{5}_)?\d{5}_\d{5}\.(ppm|png)"
"""Class, track and frame; a copy has the class in the file's name too."""
OTHER_SIGNS = (
    "is another set, of 26,640 images: that of an earlier competition, which torchvision takes; "
    "this one is GTSRB_Final_Training_Images.zip"
)

_MOST_CLASSES = 10_000
_MOST_BYTES = 1 << 20  # of imagelabels.mat, which has 502


def _save(
    writer: Writer,
    halves: Halves,
    view: View,
    decode: Callable[[bytes, str], Array] = small_picture,
) -> None:
    """Decode all listed pictures of a set; as they are, unless another decoder is passed."""
    store_halves(writer, image_array(writer), view, halves, decode)


def or_parquet(
    usual: Callable[[Raw, Writer], None], parquet: Callable[[Raw, Writer], None]
) -> Callable[[Raw, Writer], None]:
    """The reader of the published files, or that of Parquet files where there are such."""
    return lambda raw, writer: (parquet if ROLE in raw.paths else usual)(raw, writer)


def refuse_boxless(raw: Raw, writer: Writer) -> None:
    """Aircraft without their boxes, as Parquet copies have them.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"expected boxes of the aircraft, {raw.paths[ROLE]} has none, and the pictures are cropped "
        "to them; get fgvc-aircraft-2013b.tar.gz"
    )


def prepare_cub(raw: Raw, writer: Writer) -> None:
    """CUB-200-2011, by its three tables; no crop to the birds."""
    bundle = raw.bundle("images")
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    halves = lists.cub(*map(lines, tables(bundle, *names)))
    _save(writer, halves, View.tails(r"[^/]+/[^/]+\.jpg", bundle))


def prepare_vgg_flowers(raw: Raw, writer: Writer) -> None:
    """VGG Flowers, by ``imagelabels.mat``."""
    bundle = raw.bundle("images")
    (content,) = tables(
        raw.bundle("labels") if "labels" in raw.paths else bundle, "imagelabels.mat"
    )
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"got a file of {len(content)} bytes")
        labels = loadmat(io.BytesIO(content), variable_names=["labels"])["labels"]
        if labels.dtype.kind not in "iuf" or not 0 < labels.min() <= labels.max() <= _MOST_CLASSES:
            raise ValueError(f"got {labels.dtype} {labels.shape}, no classes from 1")
    except Exception as fault:  # its reader fails in as many ways as there are bytes
        reason = reason_of(fault)
        raise DataError(f"expected an array labels in imagelabels.mat: {reason}") from fault
    _save(writer, lists.vgg_flowers(labels), View.tails(r"image_\d{5}\.jpg", bundle))


def prepare_dtd(raw: Raw, writer: Writer) -> None:
    """Describable Textures, the first of its ten partitions."""
    bundle = raw.bundle("images")
    names = (f"labels/{part}1.txt" for part in ("train", "val", "test"))
    halves = lists.dtd(*map(lines, tables(bundle, *names)))
    _save(writer, halves, View.tails(r"[^/]+/[^/]+\.jpg", bundle))


def prepare_traffic_sign(raw: Raw, writer: Writer) -> None:
    """German Traffic Signs: the training images alone, no crop to the signs."""
    bundle = raw.bundle("images")
    view = View.tails(SIGN, bundle, called=_sign_name)
    if any("GTSRB/Training/" in f"{bundle.path}/{where}" for _, where in view.members.values()):
        raise DataError(f"expected the final training set in {bundle.path}; it {OTHER_SIGNS}")
    by_track = raw.options["split"] == "tracks"
    _save(writer, lists.traffic_sign(view.members, by_track=by_track), view)


def _sign_name(tail: str) -> str:
    """What a file is called in the published archive."""
    sign, _, file = tail.partition("/")
    track, frame = file.rpartition(".")[0].split("_")[-2:]
    return f"{int(sign):05d}/{track}_{frame}.ppm"


def prepare_aircraft(raw: Raw, writer: Writer) -> None:
    """FGVC Aircraft: variants, cropped to the published boxes."""
    bundle = raw.bundle("images")
    names = ("images_variant_trainval.txt", "images_variant_test.txt", "images_box.txt")
    halves, boxes = lists.aircraft(*map(lines, tables(bundle, *names)))

    def decode(content: bytes, name: str) -> Array:
        return decode_picture(content, name, box=boxes[name])[np.newaxis]

    _save(writer, halves, View.tails(r"\d+\.jpg", bundle), decode)


def prepare_cifar10(raw: Raw, writer: Writer) -> None:
    """CIFAR-10: five batches to train on, one to test."""
    array = image_array(writer)
    labels: list[Array] = []
    view = View.tails(r"(data_batch_[1-5]|test_batch)", raw.bundle("images"))
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        cut = array.rows  # at last, where the test batch begins
        with writer.reading(name):
            images, classes = read_member(view, name)
            array.extend(images)
            labels.append(classes)
    writer.save("label", np.concatenate(labels) if labels else np.zeros(0, np.int64))
    writer.probe({"image": "image"}, "label", np.arange(cut), np.arange(cut, array.rows))
