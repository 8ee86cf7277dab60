"""RGB images: six labelled sets, to which an encoder pretrained on ImageNet32 is transferred."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from scipy.io import loadmat

from metamae.data.dataset import Affine, Array, Task
from metamae.data.formats.pictures import decode_picture
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Names, Option, Source, packed_or_not
from metamae.data.preparing.views import View, lines, store_halves, tables
from metamae.data.preparing.writer import Writer
from metamae.data.sources.images import lists as lists
from metamae.data.sources.images.arrays import image_array, image_inputs, small_picture
from metamae.data.sources.images.imagenet32 import read_member
from metamae.data.sources.images.parquet import (
    ROLE,
    SHARDS,
    hub_layout,
    prepare_flowers,
    prepare_official,
)
from metamae.errors import DataError, reason_of

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""Classes of CIFAR-10, in the order of its ``batches.meta``."""


_SIGN = r"\d{1,5}/(\d{5}_)?\d{5}_\d{5}\.(ppm|png)"
"""Class, track and frame; a copy has the class in the file's name too."""
_OTHER_SIGNS = (
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


def _or_parquet(
    usual: Callable[[Raw, Writer], None], parquet: Callable[[Raw, Writer], None]
) -> Callable[[Raw, Writer], None]:
    """The reader of the published files, or that of Parquet files where there are such."""
    return lambda raw, writer: (parquet if ROLE in raw.paths else usual)(raw, writer)


def _no_boxes(raw: Raw, writer: Writer) -> None:
    raise DataError(
        f"expected boxes of the aircraft, {raw.paths[ROLE]} has none, and the pictures are cropped "
        "to them; get fgvc-aircraft-2013b.tar.gz"
    )


def _prepare_cub(raw: Raw, writer: Writer) -> None:
    """CUB-200-2011, by its three tables; no crop to the birds."""
    bundle = raw.bundle("images")
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    halves = lists.cub(*map(lines, tables(bundle, *names)))
    _save(writer, halves, View.tails(r"[^/]+/[^/]+\.jpg", bundle))


def _prepare_vgg_flowers(raw: Raw, writer: Writer) -> None:
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


def _prepare_dtd(raw: Raw, writer: Writer) -> None:
    """Describable Textures, the first of its ten partitions."""
    bundle = raw.bundle("images")
    names = (f"labels/{part}1.txt" for part in ("train", "val", "test"))
    halves = lists.dtd(*map(lines, tables(bundle, *names)))
    _save(writer, halves, View.tails(r"[^/]+/[^/]+\.jpg", bundle))


def _prepare_traffic_sign(raw: Raw, writer: Writer) -> None:
    """German Traffic Signs: the training images alone, no crop to the signs."""
    bundle = raw.bundle("images")
    view = View.tails(_SIGN, bundle, called=_sign_name)
    if any("GTSRB/Training/" in f"{bundle.path}/{where}" for _, where in view.members.values()):
        raise DataError(f"expected the final training set in {bundle.path}; it {_OTHER_SIGNS}")
    by_track = raw.options["split"] == "tracks"
    _save(writer, lists.traffic_sign(view.members, by_track=by_track), view)


def _sign_name(tail: str) -> str:
    """What a file is called in the published archive."""
    sign, _, file = tail.partition("/")
    track, frame = file.rpartition(".")[0].split("_")[-2:]
    return f"{int(sign):05d}/{track}_{frame}.ppm"


def _prepare_aircraft(raw: Raw, writer: Writer) -> None:
    """FGVC Aircraft: variants, cropped to the published boxes."""
    bundle = raw.bundle("images")
    names = ("images_variant_trainval.txt", "images_variant_test.txt", "images_box.txt")
    halves, boxes = lists.aircraft(*map(lines, tables(bundle, *names)))

    def decode(content: bytes, name: str) -> Array:
        return decode_picture(content, name, box=boxes[name])[np.newaxis]

    _save(writer, halves, View.tails(r"\d+\.jpg", bundle), decode)


def _prepare_cifar10(raw: Raw, writer: Writer) -> None:
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


def _layouts(
    archives: Mapping[str, Names], unpacked: Names, dabs: str, metamae: str, *hub: Layout
) -> tuple[Layout, ...]:
    usual = packed_or_not("images", archives, unpacked=unpacked, dabs=dabs, metamae=metamae)
    return (*usual, *hub)


_source = partial(
    Source,
    modality="RGB images",
    inputs=image_inputs,
    token_size=(4, 4),
    pretrained_on="imagenet32",
    scaling={"image": Affine.divide(255)},
)

SOURCES = (
    _source(
        name="cifar10",
        origin="cifar-10-python.tar.gz from the CIFAR page of the University of Toronto",
        layouts=_layouts(
            {"images": "cifar-10-python.tar.gz"},
            "cifar-10-batches-py",
            "natural_images/cifar10",
            "cifar-10-batches-py",
            hub_layout("cifar10", "uoft-cs/cifar10"),
        ),
        contents={ROLE: SHARDS, "images": Content(r"data_batch_[1-5]|test_batch", 6)},
        totals={"train": 50_000, "test": 10_000},
        prepare=_or_parquet(_prepare_cifar10, partial(prepare_official, classes=CIFAR10)),
        task=Task.of_classes(CIFAR10),
        split="the official 50,000 and 10,000 images.",
    ),
    _source(
        name="cub",
        origin="CUB_200_2011.tgz from Caltech",
        layouts=_layouts(
            {"images": "CUB_200_2011.tgz"},
            "CUB_200_2011",
            "natural_images/cu_birds/CUB_200_2011",
            "CUB_200_2011",
        ),
        contents={"images": Content(r"\d{3}\.[^/]+/[^/]+\.jpg", 11_788)},
        totals={"train": 5_994, "test": 5_794},
        prepare=_prepare_cub,
        task=Task.of_classes(),
        split="the official one, by train_test_split.txt.",
    ),
    _source(
        name="vgg_flowers",
        origin="102flowers.tgz and imagelabels.mat from the Visual Geometry Group, Oxford",
        layouts=_layouts(
            {"images": "102flowers.tgz", "labels": "imagelabels.mat"},
            "flowers-102",
            "natural_images/flowers",
            "flowers102",
            hub_layout("vgg_flowers", "nelorth/oxford-flowers", "dpdl-benchmark/oxford_flowers102"),
        ),
        contents={
            ROLE: SHARDS,
            "images": Content(r"image_\d{5}\.jpg", 8_189),
            "labels": Content(r"imagelabels\.mat"),
        },
        totals={"image": 8_189},
        prepare=_or_parquet(_prepare_vgg_flowers, prepare_flowers),
        task=Task.of_classes(),
        split="80/20 per class with one RandomState(42), classes in order of first appearance; the "
        "official split is not used.",
    ),
    _source(
        name="dtd",
        origin="dtd-r1.0.1.tar.gz from the Visual Geometry Group, Oxford",
        layouts=_layouts(
            {"images": "dtd-r1.0.1.tar.gz"},
            "dtd",
            "natural_images/dtd/dtd",
            "imagenet/dtd",
            hub_layout("dtd", "tanganke/dtd"),
        ),
        contents={ROLE: SHARDS, "images": Content(r"dtd/(images/[^/]+|labels)/[^/]+\.(jpg|txt)")},
        totals={"train": 3_760, "test": 1_880},
        prepare=_or_parquet(_prepare_dtd, prepare_official),
        task=Task.of_classes(),
        split="train1.txt and val1.txt against test1.txt, the first of ten official partitions.",
    ),
    _source(
        name="traffic_sign",
        origin="GTSRB_Final_Training_Images.zip of the German Traffic Sign Recognition Benchmark",
        layouts=_layouts(
            {"images": ("GTSRB_Final_Training_Images.zip", "gtsrb-german-traffic-sign.zip")},
            ("GTSRB/Final_Training", "Train"),
            "natural_images/traffic_sign/GTSRB",
            "imagenet/traffic_sign/GTSRB",
        ),
        contents={"images": Content(_SIGN, 39_209)},
        totals={"image": 39_209},
        lookalikes={
            "GTSRB/Training": _OTHER_SIGNS,
            "GTSRB-Training_fixed.zip": _OTHER_SIGNS,
        },
        prepare=_prepare_traffic_sign,
        task=Task.of_classes(),
        split="training images only, 80/20 per class with one RandomState(42) over sorted names; "
        "the published order is that of a file system. Frames of one sign fall on both sides "
        "unless split=tracks.",
        options={
            "split": Option(
                ("frames", "tracks"),
                "frames: as published, images of one physical sign are on both sides; tracks: "
                "all images of a sign stay on one side",
            )
        },
    ),
    _source(
        name="aircraft",
        origin="fgvc-aircraft-2013b.tar.gz from the Visual Geometry Group, Oxford",
        layouts=_layouts(
            {"images": "fgvc-aircraft-2013b.tar.gz"},
            "fgvc-aircraft-2013b",
            "natural_images/aircraft/fgvc-aircraft-2013b",
            "imagenet/fgvc-aircraft-2013b",
            hub_layout("aircraft", "HuggingFaceM4/FGVC-Aircraft"),
        ),
        contents={ROLE: SHARDS, "images": Content(r"data/images/\d{7}\.jpg|images_box\.txt")},
        totals={"train": 6_667, "test": 3_333},
        prepare=_or_parquet(_prepare_aircraft, _no_boxes),
        task=Task.of_classes(),
        split="trainval against test; cropped to the published boxes. As many classes as the lists "
        "name, 100; published heads have 102, two of them unused.",
    ),
)
