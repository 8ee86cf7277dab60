"""Which pictures of the image sets are in which part, and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.pictures import Box
from metamae.data.preparing.listing import Halves, cut_per_class, index_of
from metamae.errors import DataError


def cub(images: Iterable[str], labels: Iterable[str], split: Iterable[str]) -> Halves:
    """Birds, cut as the authors did; classes are named by the folders.

    Args:
        images: Lines of ``images.txt``: id and path.
        labels: Lines of ``image_class_labels.txt``: id and class from 1.
        split: Lines of ``train_test_split.txt``: id and 1 for training, 0 for testing.
    """
    paths = _pairs(images, "images.txt")
    classes = _pairs(labels, "image_class_labels.txt")
    training = _pairs(split, "train_test_split.txt")
    if not paths.keys() == classes.keys() == training.keys():
        raise DataError(
            "expected the same images in images.txt, image_class_labels.txt and "
            f"train_test_split.txt, got {len(paths)}, {len(classes)} and {len(training)} lines"
        )
    names: dict[int, str] = {}
    for key, path in paths.items():
        names.setdefault(int(classes[key]) - 1, path.split("/")[0])
    known = tuple(names.get(label, f"class {label + 1}") for label in range(max(names) + 1))
    halves = Halves(known)
    for key, path in paths.items():
        half = halves.train if training[key] == "1" else halves.test
        half.add(path, int(classes[key]) - 1)
    return halves


def _pairs(lines: Iterable[str], name: str) -> dict[str, str]:
    pairs = {}
    for number, line in enumerate(lines, start=1):
        key, _, value = line.strip().partition(" ")
        if not value:
            raise DataError(f"expected two entries in line {number} of {name}, got {line!r}")
        pairs[key] = value
    return pairs


def vgg_flowers(labels: Array) -> Halves:
    """Flowers, cut 80/20 per class in order of first appearance; not the official split.

    Args:
        labels: Array ``labels`` of ``imagelabels.mat``: the class from 1 of image 1, 2, ...
    """
    classes = np.asarray(labels).ravel().astype(int)
    groups: dict[int, list[list[str]]] = {}
    for number, label in enumerate(classes, start=1):
        groups.setdefault(int(label) - 1, []).append([f"image_{number:05d}.jpg"])
    names = [str(label + 1) for label in range(int(classes.max()))]
    return cut_per_class(list(groups.values()), names, list(groups))


def dtd(train: Iterable[str], validation: Iterable[str], test: Iterable[str]) -> Halves:
    """Textures, first of the ten official partitions; classes in alphabetical order.

    Args:
        train: Lines of ``train1.txt``: ``CATEGORY/FILE``.
        validation: Lines of ``val1.txt``, which are for training too.
        test: Lines of ``test1.txt``.
    """
    training, testing = [*train, *validation], list(test)
    halves = Halves(tuple(sorted({line.split("/")[0] for line in (*training, *testing)})))
    for half, lines in ((halves.train, training), (halves.test, testing)):
        for line in lines:
            half.add(line, halves.classes.index(line.split("/")[0]))
    return halves


def traffic_sign(names: Iterable[str], *, by_track: bool = False) -> Halves:
    """Traffic signs, 80/20 per class from the training images.

    The published order is that in which a file system lists files; here names are sorted first, so
    that the split is the same everywhere. Up to thirty frames show one physical sign (a *track*,
    the first number of a file name) and fall on both sides unless ``by_track``.

    Args:
        names: ``CLASS/TRACK_FRAME.ppm``.
        by_track: Whether all frames of a track stay on one side.
    """
    ordered = sorted(names)
    classes = sorted({name.split("/")[0] for name in ordered})
    groups = []
    for _, members in groupby(ordered, key=lambda name: name.split("/")[0]):
        files = list(members)
        tracks = [list(track) for _, track in groupby(files, key=lambda name: name.split("_")[0])]
        groups.append(tracks if by_track else [[file] for file in files])
    return cut_per_class(groups, classes, range(len(classes)))


def aircraft(
    trainval: Iterable[str], test: Iterable[str], boxes: Iterable[str]
) -> tuple[Halves, dict[str, Box]]:
    """Aircraft variants, as many classes as the lists name, and the box of every image.

    Boxes are used as the published code uses them: their origin is 1, and nothing is subtracted.

    Args:
        trainval: Lines of ``images_variant_trainval.txt``: name and variant.
        test: Lines of ``images_variant_test.txt``.
        boxes: Lines of ``images_box.txt``: name, xmin, ymin, xmax, ymax.
    """
    training = _pairs(trainval, "images_variant_trainval.txt")
    testing = _pairs(test, "images_variant_test.txt")
    halves = Halves(tuple(sorted({*training.values(), *testing.values()})))
    for half, variants in ((halves.train, training), (halves.test, testing)):
        for name, variant in variants.items():
            half.add(f"{name}.jpg", index_of(variant, halves.classes, name))
    corners = {
        f"{name}.jpg": _box(values.split(), name)
        for name, values in _pairs(boxes, "images_box.txt").items()
    }
    absent = [file for file in (*halves.train.files, *halves.test.files) if file not in corners]
    if absent:
        raise DataError(f"expected a box of every image in images_box.txt, none for {absent[0]}")
    return halves, corners


def _box(values: Sequence[str], name: str) -> Box:
    try:
        left, upper, right, lower = map(int, values)
    except ValueError as fault:
        raise DataError(f"expected four numbers of {name} in images_box.txt: {fault}") from fault
    return left, upper, right, lower
