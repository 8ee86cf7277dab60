"""RGB sets from Parquet files of the Hugging Face hub: the same pictures, and the same parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from metamae.data.formats.archives import Bundle
from metamae.data.formats.parquet import PictureRow, class_names, picture_rows
from metamae.data.preparing.listing import Halves
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout
from metamae.data.preparing.views import save_halves
from metamae.data.preparing.writer import Writer
from metamae.data.sources.images import lists as lists
from metamae.data.sources.images.arrays import image_array, small_picture
from metamae.errors import DataError

ROLE = "parquet"
SHARDS = Content(r"(train|validation|val|test)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")
"""Files of a set on the hub, by split."""

_TRAINING = ("train", "validation", "val")
_FLOWER = re.compile(r"image_(\d{5})\.jpg")


def hub_layout(name: str, *repositories: str) -> Layout:
    """The folder of a download, called like the set or like a repository, or the hub's cache."""
    cached = (f"datasets--{name.replace('/', '--')}" for name in repositories)
    ends = (name.rpartition("/")[2] for name in repositories)
    names = (name, *repositories, *ends, *cached)
    return Layout(ROLE, {ROLE: tuple(dict.fromkeys(names))}, checked=True)


def _shards(bundle: Bundle, splits: Sequence[str]) -> list[tuple[str, str]]:
    """Files of some splits and the split of each."""
    files = []
    for split in splits:
        fits = [name for name in bundle.names() if SHARDS.fits(name)]
        files += [(name, split) for name in fits if name.rpartition("/")[2].startswith(f"{split}-")]
        _refuse_gaps(bundle, [name for name, of in files if of == split])
    if not files:
        raise DataError(f"expected files like train-00000-of-00001.parquet in {bundle.path}")
    return files


def _refuse_gaps(bundle: Bundle, names: Sequence[str]) -> None:
    numbers = [re.findall(r"-(\d{5})-of-(\d{5})", name)[-1] for name in names]
    if len({of for _, of in numbers}) > 1 or len({number for number, _ in numbers}) < len(numbers):
        raise DataError(
            f"expected one set of Parquet files in {bundle.path}, got several: {names[0]}, "
            f"{names[-1]}; leave one"
        )


def _rows(
    raw: Raw, bundle: Bundle, splits: Sequence[str]
) -> Iterator[tuple[str, str, int, PictureRow]]:
    """File, split, number and content of every row, behind a progress bar."""
    files = _shards(bundle, splits)
    with raw.reporter.stage(f"reading {bundle.path.name}", total=len(files), unit="files") as stage:
        for name, split in files:
            for number, row in enumerate(picture_rows(raw.extract(bundle, name))):
                yield name, split, number, row
            stage.advance()


def _classes(raw: Raw, bundle: Bundle) -> tuple[str, ...]:
    """Names of the classes, from the first file."""
    name, _ = _shards(bundle, ("train",))[0]
    return class_names(raw.extract(bundle, name))


def prepare_official(raw: Raw, writer: Writer, classes: Sequence[str] = ()) -> None:
    """A set whose parts are its splits; validation is for training too.

    Args:
        raw: Its files.
        writer: Where it goes.
        classes: Names in the order of the labels, where the set has such an order; else the order
            is alphabetical.
    """
    bundle = raw.bundle(ROLE)
    known = _classes(raw, bundle)
    ordered = tuple(classes) or tuple(sorted(known))
    if set(known) != set(ordered):
        raise DataError(
            f"expected the classes {', '.join(ordered[:5])}, ... in {bundle.path}, got "
            f"{', '.join(known[:5]) or 'no names'}"
        )
    halves = Halves(ordered)
    rows = {}
    array = image_array(writer)
    for name, split, number, row in _rows(raw, bundle, ("train", "validation", "val", "test")):
        with writer.reading(f"row {number} of {name}"):
            array.extend(small_picture(row.content, name))
            key = f"{name} {number}"
            rows[key] = array.rows - 1, array.rows - 1
            half = halves.train if split in _TRAINING else halves.test
            half.add(key, ordered.index(known[row.label]))
    save_halves(writer, halves, rows, array)


def prepare_flowers(raw: Raw, writer: Writer) -> None:
    """VGG Flowers by the names of its files, whatever splits they were put in."""
    bundle = raw.bundle(ROLE)
    known = _classes(raw, bundle)
    rows, labels = {}, {}
    array = image_array(writer)
    for name, _, number, row in _rows(raw, bundle, ("train", "validation", "val", "test")):
        flower = _FLOWER.search(row.path)
        if flower is None:
            raise DataError(
                f"expected names like image_00001.jpg of the pictures in {name}, got "
                f"{row.path or 'none'}: without them the published split cannot be made; get "
                "102flowers.tgz and imagelabels.mat"
            )
        with writer.reading(f"row {number} of {name}"):
            array.extend(small_picture(row.content, name))
            rows[flower[0]] = array.rows - 1, array.rows - 1
            labels[int(flower[1])] = row.label + 1
    given = np.array([labels.get(number, 0) for number in range(1, max(labels, default=0) + 1)])
    if not given.size or not given.all():
        lost = int(np.argmin(given)) + 1 if given.size else 1
        raise DataError(f"expected image_{lost:05d}.jpg in {bundle.path}, found none")
    halves = lists.vgg_flowers(given)
    halves.classes = known if known else halves.classes
    save_halves(writer, halves, rows, array)


def prepare_training(raw: Raw, writer: Writer) -> None:
    """The training split alone, labels unused."""
    bundle = raw.bundle(ROLE)
    array = image_array(writer)
    for name, _, number, row in _rows(raw, bundle, ("train",)):
        with writer.reading(f"row {number} of {name}"):
            array.extend(small_picture(row.content, name))
    writer.partition("pretrain", {"image": array.path.stem})
