"""Pictures of every kind become RGB squares; damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from metamae import DataError
from metamae.data.dataset import Array
from metamae.data.formats.pictures import decode_centre, decode_picture
from tests.metamae.data.packing import encode_picture as encode


def noise(height: int, width: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_is_squeezed_into_a_square() -> None:
    """Left half red, right half blue, four times wider than high: all of it is kept."""
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, :32, 0] = wide[:, 32:, 2] = 200
    array = decode_picture(encode(Image.fromarray(wide), "PNG"), "wide.png")
    assert array.shape == (3, 32, 32)
    assert array.dtype == np.uint8
    assert array[:, 5, 5].tolist() == [200, 0, 0]
    assert array[:, 5, 28].tolist() == [0, 0, 200]


def test_shrinking_averages() -> None:
    """A board of single black and white pixels becomes gray, not black or white."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    array = decode_picture(encode(Image.fromarray(board.astype(np.uint8)), "PNG"), "board.png")
    assert np.abs(array[:, 2:-2, 2:-2].astype(int) - 127).max() < 12


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 100, "JPEG", (100, 100, 100)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (100, 0), "PNG", (100, 100, 100)),
        ("RGBA", (10, 20, 30, 128), "PNG", (10, 20, 30)),
        ("RGB", (10, 20, 30), "PPM", (10, 20, 30)),
        ("RGB", (10, 20, 30), "BMP", (10, 20, 30)),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, colour: tuple[int, ...], kind: str, expected: tuple[int, ...]
) -> None:
    array = decode_picture(encode(Image.new(mode, (40, 40), colour), kind), "x")
    np.testing.assert_allclose(array[:, 16, 16], expected, atol=3)


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_picture(encode(image, "GIF"), "x.gif")[:, 3, 3].tolist() == [10, 200, 30]


def test_a_box_is_cut_out_first() -> None:
    pixels = noise(50, 60)
    whole = encode(Image.fromarray(pixels), "PNG")
    inside = encode(Image.fromarray(pixels[20:40, 10:30]), "PNG")
    assert np.array_equal(
        decode_picture(whole, "x", box=(10, 20, 30, 40)), decode_picture(inside, "y")
    )
    # A box that reaches beyond the image, as those with origin 1 do, is cut at its edge.
    edge = encode(Image.fromarray(pixels[20:, 10:]), "PNG")
    assert np.array_equal(
        decode_picture(whole, "x", box=(10, 20, 61, 51)), decode_picture(edge, "y")
    )
    with pytest.raises(DataError, match=r"expected a box inside the image x, got \(60, 0, 70, 9\)"):
        decode_picture(whole, "x", box=(60, 0, 70, 9))


def test_captioned_pictures_lose_their_upper_and_lower_eighth() -> None:
    """Stretched to 640 x 480 whatever the shape; the central 480 rows remain."""
    tall = np.zeros((800, 800, 3), np.uint8)
    tall[:100, :, 0] = tall[700:, :, 2] = 255
    tall[100:700, :, 1] = 255
    array = decode_centre(encode(Image.fromarray(tall), "PNG"), "x")
    assert array.shape == (3, 224, 224)
    assert array[1, 3:-3].min() == 255
    assert array[(0, 2), 3:-3].max() == 0


JPEG = encode(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no image"),
        (b"<html>404 Not Found</html>", "it is no image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:30], "Truncated"),
        (encode(Image.fromarray(noise(64, 64)), "PNG")[:200], "truncated|broken"),
        (b"P6 40 40 255\n" + bytes(100), "truncated|not enough|buffer"),
    ],
)
def test_damage_names_the_file(content: bytes, reason: str) -> None:
    with pytest.raises(
        DataError, match=rf"expected an image in n01/x\.jpg, got \d+ bytes: .*({reason})"
    ):
        decode_picture(content, "n01/x.jpg")
