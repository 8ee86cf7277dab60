"""The published parts of the image sets, from names and tables alone."""

from __future__ import annotations

import numpy as np
import pytest

from metamae import DataError
from metamae.data.sources.images import lists as lists


def test_cub_follows_its_three_tables() -> None:
    halves = lists.cub(
        ["1 001.A/x.jpg", "2 001.A/y.jpg", "3 003.C/z.jpg"],
        ["1 1", "2 1", "3 3"],
        ["1 1", "2 0", "3 1"],
    )
    assert halves.classes == ("001.A", "class 2", "003.C")  # a class without images keeps its place
    assert (halves.train.files, halves.train.labels) == (["001.A/x.jpg", "003.C/z.jpg"], [0, 2])
    assert (halves.test.files, halves.test.labels) == (["001.A/y.jpg"], [0])


def test_cub_refuses_tables_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="got 2, 1 and 2 lines"):
        lists.cub(["1 a/x.jpg", "2 a/y.jpg"], ["1 1"], ["1 1", "2 0"])
    with pytest.raises(DataError, match=r"expected two entries in line 2 of images\.txt, got '2'"):
        lists.cub(["1 a/x.jpg", "2"], ["1 1"], ["1 1"])


def test_flowers_are_cut_in_order_of_first_appearance() -> None:
    """Class 3 comes first, so it takes the first draws of the generator that all classes share."""
    labels = np.array([[3, 3, 1, 3, 1, 3, 1, 1, 3, 1]], np.uint8)
    halves = lists.vgg_flowers(labels)
    random = np.random.RandomState(42)
    train, test = [], []
    for members in ([1, 2, 4, 6, 9], [3, 5, 7, 8, 10]):
        names = [f"image_{n:05d}.jpg" for n in members]
        random.shuffle(names)
        train += names[:4]
        test += names[4:]
    assert halves.classes == ("1", "2", "3")
    assert (halves.train.files, halves.test.files) == (train, test)
    assert (halves.train.labels, halves.test.labels) == ([2] * 4 + [0] * 4, [2, 0])


def test_dtd_joins_training_and_validation() -> None:
    halves = lists.dtd(["waffled/a.jpg"], ["banded/b.jpg"], ["banded/c.jpg", "waffled/d.jpg"])
    assert halves.classes == ("banded", "waffled")
    assert (halves.train.files, halves.train.labels) == (["waffled/a.jpg", "banded/b.jpg"], [1, 0])
    assert halves.test.labels == [0, 1]


SIGNS = [
    f"{sign:05d}/{track:05d}_{frame:05d}.ppm"
    for sign in range(2)
    for track in range(5)
    for frame in range(3)
]


def test_traffic_signs_do_not_depend_on_the_order_of_files() -> None:
    shuffled = list(np.random.default_rng(0).permutation(SIGNS))
    halves, again = lists.traffic_sign(SIGNS), lists.traffic_sign(shuffled)
    assert halves == again
    assert (len(halves.train), len(halves.test)) == (24, 6)
    first = np.random.RandomState(42).permutation(15)
    assert halves.train.files[:12] == [SIGNS[n] for n in first[:12]]
    assert halves.test.labels == [0] * 3 + [1] * 3


def test_a_track_stays_on_one_side_when_asked() -> None:
    def tracks(files: list[str]) -> set[str]:
        return {name.split("_")[0] for name in files}

    published, apart = lists.traffic_sign(SIGNS), lists.traffic_sign(SIGNS, by_track=True)
    assert tracks(published.train.files) & tracks(published.test.files)
    assert not tracks(apart.train.files) & tracks(apart.test.files)
    assert (len(apart.train), len(apart.test)) == (24, 6)  # four tracks of five, whole


def test_aircraft_takes_its_classes_from_the_lists() -> None:
    halves, boxes = lists.aircraft(
        ["0001 Boeing 737-200", "0002 A300"],
        ["0003 A300"],
        ["0001 10 20 30 40", "0002 1 1 5 5", "0003 2 2 6 6"],
    )
    assert halves.classes == ("A300", "Boeing 737-200")
    assert (halves.train.files, halves.train.labels) == (["0001.jpg", "0002.jpg"], [1, 0])
    assert (halves.test.files, halves.test.labels) == (["0003.jpg"], [0])
    assert boxes["0001.jpg"] == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "expected a box of every image in images_box.txt, none for 1.jpg"),
        (["1 1 2 3"], "expected four numbers of 1 in images_box.txt"),
        (["1 1 2 3 x"], "expected four numbers of 1 in images_box.txt"),
    ],
)
def test_aircraft_needs_all_boxes(boxes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        lists.aircraft(["1 A300"], ["2 A300"], [*boxes, "2 1 1 2 2"])
