"""RGB images: six labelled sets, to which an encoder pretrained on ImageNet32 is transferred."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from metamae.data.dataset import Affine, Task
from metamae.data.preparing.source import Content, Layout, Names, Option, Source, packed_or_not
from metamae.data.sources.images.arrays import image_inputs
from metamae.data.sources.images.parquet import (
    ROLE,
    SHARDS,
    hub_layout,
    prepare_flowers,
    prepare_official,
)
from metamae.data.sources.images.readers import (
    CIFAR10,
    OTHER_SIGNS,
    SIGN,
    or_parquet,
    prepare_aircraft,
    prepare_cifar10,
    prepare_cub,
    prepare_dtd,
    prepare_traffic_sign,
    prepare_vgg_flowers,
    refuse_boxless,
)


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
        prepare=or_parquet(prepare_cifar10, partial(prepare_official, classes=CIFAR10)),
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
        prepare=prepare_cub,
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
        prepare=or_parquet(prepare_vgg_flowers, prepare_flowers),
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
        prepare=or_parquet(prepare_dtd, prepare_official),
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
        contents={"images": Content(SIGN, 39_209)},
        totals={"image": 39_209},
        lookalikes={
            "GTSRB/Training": OTHER_SIGNS,
            "GTSRB-Training_fixed.zip": OTHER_SIGNS,
        },
        prepare=prepare_traffic_sign,
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
        prepare=or_parquet(prepare_aircraft, refuse_boxless),
        task=Task.of_classes(),
        split="trainval against test; cropped to the published boxes. As many classes as the lists "
        "name, 100; published heads have 102, two of them unused.",
    ),
)
