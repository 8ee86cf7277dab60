"""ImageNet at 32 x 32 pixels, for pretraining: shrunk here, or as it was published small."""

from __future__ import annotations

import numpy as np

from metamae.data.dataset import Affine, Array
from metamae.data.formats.archives import Bundle
from metamae.data.formats.limits import CLASS_ARCHIVE, read_whole
from metamae.data.formats.pickles import read_batch
from metamae.data.formats.tars import tar_contents
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source
from metamae.data.preparing.views import View, store
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.data.sources.images.arrays import image_array, image_inputs, small_picture
from metamae.data.sources.images.parquet import ROLE, SHARDS, hub_layout, prepare_training
from metamae.errors import DataError

_SOME = 10_000


def read_member(view: View, name: str) -> tuple[Array, Array]:
    """Images and labels of one pickled batch.

    Raises:
        DataError: it is missing or damaged.
    """
    if name not in view.members:
        raise DataError("it is not there")
    for _, file in view.walk([name]):
        batch = read_batch(file, name)
    return batch


def _prepare(raw: Raw, writer: Writer) -> None:
    """ImageNet: the published 32 x 32 batches, or full-size files that are resized."""
    if ROLE in raw.paths:
        prepare_training(raw, writer)
        return
    array = image_array(writer)
    bundle = raw.bundle("images")
    if raw.layout == "batches":
        view = View.tails(r"train_data_batch_\d+", bundle)
        with writer.reporter.stage("image", total=10, unit="files") as stage:
            for number in range(1, 11):
                with writer.reading(f"train_data_batch_{number}"):
                    array.extend(read_member(view, f"train_data_batch_{number}")[0])
                stage.advance()
        writer.partition("pretrain", {"image": "image"})
        return
    rows = (
        _classes(bundle, writer, array)
        if raw.layout == "published"
        else _tree(bundle, writer, array)
    )
    index = np.array([rows[name][0] for name in sorted(rows)], np.int64)
    writer.partition("pretrain", {"image": "image"}, index=index)


def _tree(bundle: Bundle, writer: Writer, array: RowWriter) -> dict[str, tuple[int, int]]:
    inside = any("CLS-LOC/train/" in name for name in bundle.first_names(_SOME))
    view = View.tails(("train/" if inside else "") + r"[^/]+/[^/]+\.(jpe?g|png)", bundle)
    return store(writer, array, view, list(view.members), small_picture)


def _classes(bundle: Bundle, writer: Writer, array: RowWriter) -> dict[str, tuple[int, int]]:
    """The published archive of full-size images holds one archive for each class."""
    rows = {}
    with writer.reporter.stage("image", total=1000, unit="classes") as stage:
        for member, packed in bundle.walk("n*.tar"):
            folder = member.rpartition("/")[2].removesuffix(".tar")
            for name, file in tar_contents(read_whole(packed, member, CLASS_ARCHIVE), member):
                with writer.reading(f"{folder}/{name}"):
                    content = read_whole(file, name)
                    array.extend(small_picture(content, f"{folder}/{name}"))
                    rows[f"{folder}/{name}"] = (array.rows - 1, array.rows - 1)
            stage.advance()
    return rows


_KAGGLE = "imagenet-object-localization-challenge.zip"

SOURCES = (
    Source(
        name="imagenet32",
        modality="RGB images",
        origin="ILSVRC2012_img_train.tar (full size, shrunk here as in the published experiments) "
        "or Imagenet32_train.zip (published small, by another filter) from image-net.org",
        inputs=image_inputs,
        token_size=(4, 4),
        layouts=(
            Layout("published", {"images": "ILSVRC2012_img_train.tar"}),
            Layout("batches", {"images": "Imagenet32_train.zip"}),
            Layout("batches", {"images": "Imagenet32_train"}),
            Layout(
                "unpacked",
                {"images": ("ILSVRC/Data/CLS-LOC/train", "ILSVRC2012_img_train", _KAGGLE)},
            ),
            Layout("dabs", {"images": "natural_images/imagenet/train"}),
            Layout("unpacked", {"images": "imagenet/train"}),
            Layout("metamae", {"images": "train"}),
            hub_layout("imagenet32", "ILSVRC/imagenet-1k"),
        ),
        contents={
            ROLE: SHARDS,
            "images": Content(r"n\d+\.tar|n\d+/[^/]+\.(?i:jpe?g|png)|train_data_batch_\d+"),
        },
        totals={"image": 1_281_167},
        prepare=_prepare,
        task=None,
        pretrained_on="imagenet32",
        split="all training images, labels unused.",
        scaling={"image": Affine.divide(255)},
    ),
)
