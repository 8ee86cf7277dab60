"""EuroSAT: Sentinel-2 patches of 64 x 64 pixels in 13 bands, by land use (Helber et al. 2019)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from metamae.data.dataset import Affine, Array, Task
from metamae.data.formats.libraries import need_module
from metamae.data.formats.limits import read_whole
from metamae.data.formats.pickles import plain_array, read_frame
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Source
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import Writer
from metamae.errors import DataError
from metamae.inputs import Image, Inputs

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
BANDS = (*(f"B{n:02d}" for n in range(1, 9)), "B09", "B10", "B11", "B12", "B8A")
SHAPE = (13, 64, 64)
_TABLES = {"pretrain": "pretrain.pkl", "transfer": "transfer.pkl"}
# fmt: off
MEAN = (1354.3003, 1117.7579, 1042.2800, 947.6443, 1199.6334, 2001.9829, 2372.5579, 2299.6663,
        731.0175, 12.0956, 1822.4083, 1119.5759, 2598.4456)
STD = (244.0469, 323.4128, 385.0928, 584.1638, 566.0543, 858.5753, 1083.6704, 1103.0342,
       402.9594, 4.7207, 1002.4071, 759.6080, 1228.4104)
# fmt: on


def _inputs(token_size: Sequence[int]) -> Inputs:
    return (
        Image(
            name="image",
            channels=SHAPE[0],
            height=SHAPE[1],
            width=SHAPE[2],
            patch=(token_size[0], token_size[-1]),
            channel_names=BANDS,
        ),
    )


def _prepare(raw: Raw, writer: Writer) -> None:
    if "images" in raw.paths:
        pretrain, transfer = _read_images(raw, writer)
    else:
        pretrain, transfer = _read_pickles(raw, writer)
    arrays = {"image": "images"}
    if raw.wants("pretrain"):
        writer.partition("pretrain", arrays, index=ninety_ten(pretrain)[0])
    if raw.wants("probe"):
        writer.probe(arrays, "labels", *ninety_ten(transfer))


def _read_images(raw: Raw, writer: Writer) -> tuple[Array, Array]:
    """GeoTIFF files; the class stands in the file's name. Shuffled by name, whatever the order."""
    tifffile = need_module("tifffile")
    images, labels = writer.array("images", SHAPE, np.uint16), writer.array("labels", (), np.uint8)
    names = []
    for path, file in raw.walk("images", "*.tif"):
        with writer.reading(path):
            name = path.rsplit("/", 1)[-1]
            label = _label(name)
            images.append(_bands_first(_decode(tifffile, read_whole(file, name))))
            labels.append(label)
            names.append(name)
    by_name = np.argsort(np.array(names, dtype=str), kind="stable")
    return ninety_ten(by_name[shuffled(len(names))])


def _read_pickles(raw: Raw, writer: Writer) -> tuple[Array, Array]:
    """The benchmark's two tables, shuffled already."""
    images, labels = writer.array("images", SHAPE, np.float32), writer.array("labels", (), np.uint8)
    ends = []
    for role in _TABLES:
        if role not in raw.paths:
            ends.append(images.rows)
            continue
        path = raw.paths[role]
        with raw.open(role) as file:
            table = read_frame(file, str(path))
        if missing := {"label", "sentinel2"} - table.keys():
            raise DataError(f"expected columns {', '.join(sorted(missing))} in {path}")
        rows = zip(table["sentinel2"], table["label"], strict=True)
        for number, (image, label) in enumerate(rows):
            with writer.reading(f"row {number} of {path.name}"):
                if not 0 <= int(label) < len(CLASSES):
                    raise DataError(f"expected a label from 0 to {len(CLASSES) - 1}, got {label}")
                images.append(_bands_first(plain_array(image)))
                labels.append(int(label))
        ends.append(images.rows)
    return np.arange(ends[0]), np.arange(ends[0], ends[1])


def _decode(tifffile: Any, content: bytes) -> Array:
    """Pixels of a GeoTIFF; its size is looked at first, for a small file can claim any."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        shape = tuple(file.series[0].shape)
        if sorted(shape) != sorted(SHAPE):
            raise DataError(f"expected 64 x 64 pixels in 13 bands, got {shape}")
        pixels: Array = file.asarray()
        return pixels


def _label(name: str) -> int:
    kind = name.partition("_")[0]
    if kind not in CLASSES:
        raise DataError(f"expected a class among {', '.join(CLASSES)} before '_', got {name}")
    return CLASSES.index(kind)


def _bands_first(image: Any) -> Array:
    pixels = np.asarray(image)
    if pixels.shape != (*SHAPE[1:], SHAPE[0]):
        raise DataError(f"expected 64 x 64 pixels in 13 bands, got {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise DataError("expected finite pixels, got NaN or infinity")
    return pixels.transpose(2, 0, 1)


SOURCES = (
    Source(
        name="eurosat",
        modality="multispectral images",
        origin="EuroSATallBands.zip from the authors of EuroSAT",
        inputs=_inputs,
        token_size=(8, 8),
        layouts=(
            Layout("published", {"images": ("EuroSATallBands.zip", "EuroSAT_MS.zip")}),
            Layout("unpacked", {"images": ("ds", "EuroSAT_MS")}),
            Layout.within("dabs", "satellite_images", _TABLES),
            Layout.within("metamae", "eurosat_all", _TABLES),
        ),
        contents={
            "images": Content(rf"({'|'.join(CLASSES)})_\d+\.tif", 27_000),
            **{role: Content(re.escape(name)) for role, name in _TABLES.items()},
        },
        totals={"pretrain": 21_870, "train": 2_430, "test": 270},
        enough_for={"pretrain": ("pretrain",), "probe": ("transfer",)},
        prepare=_prepare,
        task=Task.of_classes(CLASSES, complete=False),
        pretrained_on="eurosat",
        split="shuffled with seed 42, 90 % to pretraining and 10 % to the probe, each cut 90/10 "
        "without another shuffle, the last tenth of pretraining unused. From the archive the "
        "files are taken by name before the shuffle, the benchmark's order being that of a "
        "library",
        scaling={
            "image": Affine(
                np.array(MEAN, np.float32)[:, None, None], np.array(STD, np.float32)[:, None, None]
            )
        },
        modules=("tifffile",),
    ),
)
