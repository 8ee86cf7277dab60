"""What every RGB set becomes: one input, one array of bytes, one row a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.pictures import SIDE, decode_picture
from metamae.data.preparing.writer import RowWriter, Writer
from metamae.inputs import Image, Inputs


def image_inputs(patch: Sequence[int]) -> Inputs:
    """The one input of every RGB set: 32 x 32 pixels in square patches."""
    return (Image(name="image", channels=3, height=SIDE, width=SIDE, patch=(patch[0], patch[-1])),)


def image_array(writer: Writer) -> RowWriter:
    """The array of every RGB set: bytes, channels first."""
    return writer.array("image", (3, SIDE, SIDE), np.uint8)


def small_picture(content: bytes, name: str) -> Array:
    """One row of that array from a file."""
    return decode_picture(content, name)[np.newaxis]
