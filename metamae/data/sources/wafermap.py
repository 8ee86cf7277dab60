"""WaferMap: maps of failed dies on wafers, by pattern (WM-811K, Wu et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from metamae.data.dataset import Affine, Array, Partition, Rows, Task
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source, Stored, packed_or_not
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import Writer
from metamae.data.sources.wafers import CHANNELS, SIZE, failure_name, picture, wafer_entries
from metamae.errors import DataError
from metamae.inputs import Image, Inputs

CLASSES = (
    "none",
    "random",
    "donut",
    "scratch",
    "center",
    "loc",
    "edge-loc",
    "edge-ring",
    "near-full",
)
_TABLES = {"labeled": "labeled.pkl", "unlabeled": "unlabeled.pkl"}


@dataclass(frozen=True)
class Grey:
    """One stored channel, read as several equal ones."""

    array: Rows
    channels: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.array)

    def __getitem__(self, rows: Any) -> Array:
        """Images with all channels."""
        return np.repeat(self.array[rows], self.channels, axis=-3)


def _inputs(token_size: Sequence[int]) -> Inputs:
    patch = (token_size[0], token_size[-1])
    return (Image(name="image", channels=CHANNELS, height=SIZE, width=SIZE, patch=patch),)


def _prepare(raw: Raw, writer: Writer) -> None:
    unlabelled = writer.array("unlabelled_images", (1, SIZE, SIZE), np.uint8)
    images = writer.array("images", (1, SIZE, SIZE), np.uint8)
    labels = writer.array("labels", (), np.uint8)
    for name, wafer, failure in wafer_entries(raw):
        with writer.reading(name):
            kind, pixels = failure_name(failure), picture(wafer)
            if kind is None:
                unlabelled.append(pixels)
            elif kind in CLASSES:
                images.append(pixels)
                labels.append(CLASSES.index(kind))
            else:
                raise DataError(f"expected a failure among {', '.join(CLASSES)}, got {kind!r}")
    if raw.wants("pretrain"):
        pretraining = ninety_ten(shuffled(unlabelled.rows))[0]
        writer.partition("pretrain", {"image": "unlabelled_images"}, index=pretraining)
    if raw.wants("probe"):
        writer.probe({"image": "images"}, "labels", *ninety_ten(shuffled(images.rows)))


def _partitions(prepared: Stored, inputs: Inputs) -> dict[str, Partition]:
    stored = prepared.stored_partitions(inputs)
    return {
        name: replace(part, arrays={"image": Grey(part.arrays["image"], CHANNELS)})
        for name, part in stored.items()
    }


SOURCES = (
    Source(
        name="wafermap",
        modality="wafer maps",
        origin="MIR-WM811K.zip of the MIR corpora, or LSWMD.pkl, the same data as one table",
        inputs=_inputs,
        token_size=(4, 4),
        layouts=(
            *packed_or_not("matlab", {"matlab": "MIR-WM811K.zip"}, unpacked="MIR-WM811K"),
            Layout("published as one table", {"all": ("LSWMD.pkl", "wm811k-wafer-map.zip")}),
            Layout.within("dabs", "semiconductors", _TABLES),
            Layout.within("metamae", "wafer_map", _TABLES),
        ),
        contents={
            "matlab": Content(r"WM811K\.mat"),
            "all": Content(r"LSWMD\.pkl"),
            "labeled": Content(r"labeled\.pkl"),
            "unlabeled": Content(r"unlabeled\.pkl"),
        },
        totals={"unlabelled_images": 638_507, "images": 172_950},
        enough_for={"pretrain": ("unlabeled",), "probe": ("labeled",)},
        prepare=_prepare,
        task=Task(kind="classification", metric="weighted_f1", classes=CLASSES, complete=False),
        pretrained_on="wafermap",
        split="wafers without a label to pretraining, all others (with the failure 'none') to the "
        "probe; each shuffled with seed 42 and cut 90/10, the last tenth of pretraining unused",
        scaling={"image": Affine.divide(255)},
        modules=("h5py", "PIL.Image"),
        partitions=_partitions,
    ),
)
