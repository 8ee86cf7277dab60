"""A folder of pictures becomes one array of bytes: resized and cut where sizes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from metamae.data.dataset import Array
from metamae.data.formats.limits import WHOLE
from metamae.data.formats.pictures import open_picture
from metamae.data.own.folders import Folder
from metamae.errors import DataError

SIDES = (128, 96, 64, 48, 32, 16, 8)
"""Sides that pictures of differing or large sizes are brought to."""
BYTES = 1 << 31
"""Bytes of all pictures together."""
GRAY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F", "LA", "La")


def fit_pictures(folder: Folder) -> tuple[dict[str, Any], Folder, str]:
    """Look at every picture: is it one, is it gray, how large is it.

    Pictures of one size up to 128 pixels stay as they are. Others are shrunk, keeping their shape,
    until the shorter side fits a square of 128, 96, 64 ... pixels (the largest that half the
    pictures fill, and that keeps all within 2 GiB), and the square is cut from the middle.

    Returns:
        The recipe, the folder without files that are left out, and what was decided.

    Raises:
        DataError: files that are no pictures.
    """
    looks, whole = folder.read_each(_look)
    sizes = {(height, width) for _, height, width in looks}
    channels = 1 if all(gray for gray, _, _ in looks) else 3
    colours = "gray" if channels == 1 else "colour"
    height, width = next(iter(sizes))
    if len(sizes) == 1 and max(height, width) <= SIDES[0] and min(height, width) >= 2:
        return (
            {"size": [height, width], "channels": channels},
            whole,
            f"{len(looks)} {colours} pictures",
        )
    shorter = float(np.median([min(height, width) for _, height, width in looks]))
    fitting = [s for s in SIDES if s <= shorter and len(looks) * channels * s * s <= BYTES]
    side = fitting[0] if fitting else SIDES[-1]
    listed = sorted(sizes)
    seen = (
        f"sizes from {listed[0][1]} x {listed[0][0]} to {listed[-1][1]} x {listed[-1][0]}"
        if len(sizes) > 1
        else f"{width} x {height} pixels"
    )
    return (
        {"size": [side, side], "channels": channels},
        whole,
        f"{len(looks)} {colours} pictures, {seen}, shrunk and cut to the central {side} x {side}",
    )


def _look(content: bytes, name: str) -> tuple[bool, int, int]:
    picture = open_picture(content, name, load=True)
    if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lies on its side
        return picture.mode in GRAY, picture.width, picture.height
    return picture.mode in GRAY, picture.height, picture.width


def read_pictures(recipe: dict[str, Any], folder: Folder) -> tuple[Array, Folder]:
    """Every picture as uint8 ``(N, channels, height, width)``.

    Raises:
        DataError: files that cannot be read.
    """
    height, width = recipe["size"]
    pictures, whole = folder.read_each(
        lambda content, name: make_picture(content, name, recipe["channels"], (height, width))
    )
    return np.stack(pictures), whole


def make_picture(content: bytes, name: str, channels: int, size: Sequence[int]) -> Array:
    """One picture, uint8 ``(channels, height, width)``; turned as its camera says.

    Raises:
        DataError: damage.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from metamae.data.own.pictures import make_picture
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (60, 40), (200, 100, 0)).save(file, "PNG")
        >>> make_picture(file.getvalue(), "a.png", 3, (8, 8))[:, 0, 0].tolist()
        [200, 100, 0]
    """
    if len(content) > WHOLE:
        raise DataError(f"expected at most {WHOLE >> 20} MiB in {name}, got {len(content)} bytes")
    picture = ImageOps.exif_transpose(open_picture(content, name, load=True))
    picture = _eight_bits(picture).convert("L" if channels == 1 else "RGB")
    if picture.size != (size[1], size[0]):
        picture = ImageOps.fit(picture, (size[1], size[0]), Pillow.Resampling.BILINEAR)
    values = np.asarray(picture)
    return values[np.newaxis] if channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _eight_bits(picture: Pillow.Image) -> Pillow.Image:
    """Pictures of 16 bits keep their upper eight; Pillow would cut off what is above 255."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.clip(np.asarray(picture).astype(np.int64) // 257, 0, 255)
    return Pillow.fromarray(values.astype(np.uint8))
