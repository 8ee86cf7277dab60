"""Pictures: an encoded file becomes RGB bytes of a fixed size."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from metamae.data.dataset import Array
from metamae.errors import DataError

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels, the last two outside the box."""

SIDE = 32
"""Side of the paper's RGB images."""


def decode_picture(content: bytes, name: str, *, box: Box | None = None) -> Array:
    """Decode any format that Pillow knows, crop to a box, and resize to a small square.

    The aspect ratio is not kept, as published. Gray, CMYK and palette images become RGB. Resizing
    is Pillow's bilinear filter, which averages where it shrinks.

    Args:
        content: The file.
        name: What the file is called in an error.
        box: Part of the image to keep; what lies beyond its edges is cut off.

    Returns:
        uint8 ``(3, 32, 32)``.

    Raises:
        DataError: a file that is no image or is cut short, or a box outside the image.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from metamae.data.formats.pictures import decode_picture
        >>> file = io.BytesIO()
        >>> Image.new("L", (50, 40), 128).save(file, "JPEG")
        >>> decode_picture(file.getvalue(), "gray.jpg")[:, 0, 0].tolist()
        [128, 128, 128]
    """
    image = _decode(content, name)
    if box is not None:
        left, upper = max(box[0], 0), max(box[1], 0)
        right, lower = min(box[2], image.width), min(box[3], image.height)
        if left >= right or upper >= lower:
            raise DataError(f"expected a box inside the image {name}, got {box} in {image.size}")
        image = image.crop((left, upper, right, lower))
    return _resize(image, SIDE)


def decode_centre(content: bytes, name: str) -> Array:
    """The published preparation of captioned pictures, uint8 ``(3, 224, 224)``.

    Resized to 640 high and 480 wide whatever the shape, cut to the central 480 x 480, resized to
    224 x 224.

    Raises:
        DataError: a file that is no image or is cut short.
    """
    tall = _decode(content, name).resize((480, 640), Image.Resampling.BILINEAR)
    return _resize(tall.crop((0, 80, 480, 560)), 224)


def _decode(content: bytes, name: str) -> Image.Image:
    return open_picture(content, name, load=True).convert("RGB")


def open_picture(content: bytes, name: str, *, load: bool = False) -> Image.Image:
    """Open any format that Pillow knows; with ``load`` its pixels are decoded too.

    Raises:
        DataError: no image, too many pixels, or one that is cut short.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns of 90 to 179 million pixels; no published picture has as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content))
            if load:
                image.load()
        return image
    # Every decoder of Pillow reports damage by exceptions of its own.
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError) as fault:
        reason = "it is no image" if isinstance(fault, UnidentifiedImageError) else str(fault)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        reason = str(fault)
    raise DataError(f"expected an image in {name}, got {len(content)} bytes: {reason}")


def _resize(image: Image.Image, side: int) -> Array:
    resized = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
