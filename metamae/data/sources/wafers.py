"""Wafers of every published file: name, map and failure of each, and what a picture of one is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.formats.libraries import need_module
from metamae.data.formats.pickles import plain_array, read_frame
from metamae.data.preparing.raw import Raw
from metamae.errors import DataError

SIZE, CHANNELS = 32, 3
MAPS, PIXELS, FAILURES = "waferMap", "pixels", "failureType"
"""Columns: maps of dies (H, W), or in the benchmark's own tables their pixels (H, W, 3)."""
_MOST_DIES = 50_000_000
"""Of a wafer, and wafers of a file: the largest published map has 90,000."""
_SHORTEST, _LONGEST = 8, 2048
"""Sides of maps that shrink."""
_NESTED = 8
"""Lists around a map or a failure."""


def wafer_entries(raw: Raw) -> Iterator[tuple[str, Any, Any]]:
    """Name, map and failure of every wafer, from whichever files there are."""
    if "matlab" in raw.paths:
        yield from _matlab_entries(raw)
        return
    for role, path in raw.paths.items():
        with raw.open(role, "*.pkl") as file:
            table = read_frame(file, str(path), shrink=_small)
        maps = table[MAPS] if MAPS in table else table.get(PIXELS)
        if maps is None or (FAILURES not in table and role != "unlabeled"):
            raise DataError(
                f"expected columns {FAILURES} and {MAPS} (or {PIXELS}) in {path}, got "
                f"{', '.join(table)}"
            )
        failures = [None] * len(maps) if role == "unlabeled" else table[FAILURES]
        for number, (wafer, failure) in enumerate(zip(maps, failures, strict=True)):
            yield f"wafer {number} of {path.name}", wafer, failure


def _matlab_entries(raw: Raw) -> Iterator[tuple[str, Any, Any]]:
    """Entries of a MATLAB 7.3 file, which is HDF5: cells of references, one read at a time."""
    h5py = need_module("h5py")
    path = raw.paths["matlab"]
    bundle = raw.bundle("matlab")
    # HDF5 is read by seeking, which a compressed archive cannot do.
    with h5py.File(raw.extract(bundle, bundle.one("*.mat")), "r") as file:
        try:
            maps, failures = file["data"][MAPS], file["data"][FAILURES]
        except KeyError as fault:
            raise DataError(f"expected data/{MAPS} and data/{FAILURES} in {path}") from fault
        if max(maps.size, failures.size) > _MOST_DIES:
            raise DataError(f"expected at most {_MOST_DIES} wafers in {path}, got {maps.shape}")
        maps, failures = maps[:].ravel(), failures[:].ravel()
        with raw.reporter.stage(f"reading {path.name}", total=len(maps), unit="wafers") as stage:
            for number, pair in enumerate(zip(maps, failures, strict=True)):
                wafer, failure = (_matlab_value(file, reference) for reference in pair)
                yield f"wafer {number} of {path.name}", wafer, failure
                stage.advance()


def _matlab_value(file: Any, reference: Any) -> Any:
    """What a reference points to: a number array, a text, or nothing; cells of one are opened."""
    cell = file[reference]
    if cell.size > _MOST_DIES:
        raise DataError(f"expected a map of at most {_MOST_DIES} dies, got {cell.shape}")
    if cell.attrs.get("MATLAB_empty", 0):
        return None
    values = cell[()]
    if values.dtype == object:
        return _matlab_value(file, values.ravel()[0])
    if cell.attrs.get("MATLAB_class") == b"char":
        return "".join(chr(code) for code in values.ravel())
    return values.T  # MATLAB keeps columns together


def failure_name(value: Any) -> str | None:
    """The failure in lower case, or ``None`` for a wafer without a label.

    Example:
        >>> import numpy as np
        >>> from metamae.data.sources.wafers import failure_name
        >>> failure_name("Edge-Ring"), failure_name(np.array([[b"none"]])), failure_name([])
        ('edge-ring', 'none', None)
    """
    for _ in range(_NESTED):
        if not isinstance(value, list | np.ndarray):
            text = value.decode("latin1") if isinstance(value, bytes) else value
            return text.strip().lower() if isinstance(text, str) and text.strip() else None
        if len(value) == 0 if isinstance(value, list) else value.size == 0:
            return None
        value = value[0] if isinstance(value, list) else value.ravel()[0]
    raise DataError(f"expected a failure in at most {_NESTED} lists, got more")


def picture(wafer: Any) -> Array:
    """A map as gray pixels ``(1, 32, 32)``: die values 0, 1, 2 become 0, 127, 255, then resized.

    Pixels ``(H, W, 3)``, the same in three equal channels, are taken as they are.

    Raises:
        DataError: neither a map nor such pixels.
    """
    for _ in range(_NESTED):
        wafer = wafer[0] if isinstance(wafer, list) and len(wafer) == 1 else wafer
    values = plain_array(wafer)
    if values.dtype == np.uint8 and values.shape == (1, SIZE, SIZE):
        return values  # shrunk when it was read
    if values.ndim == 2 and values.size and _are_dies(values):
        pixels = (values * 127.5).astype(np.uint8)
    elif values.ndim == 3 and values.size and _are_pixels(values):
        pixels = values[..., 0].astype(np.uint8)
    else:
        raise DataError(
            "expected a map (H, W) of 0, 1 and 2, or pixels (H, W, 3) from 0 to 255 in equal "
            f"channels, got {values.dtype} {values.shape}"
        )
    pillow = need_module("PIL.Image")
    whole = pillow.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(whole.resize((SIZE, SIZE), pillow.Resampling.BILINEAR))[np.newaxis]


def _are_dies(dies: Array) -> bool:
    if dies.dtype.kind in "iu":  # a tenth of the time
        return bool(dies.min() >= 0 and dies.max() <= 2)
    return bool(np.isin(dies, (0, 1, 2)).all())


def _are_pixels(pixels: Array) -> bool:
    if pixels.shape[-1] != CHANNELS or pixels.dtype.kind not in "iu":
        return False
    first = pixels[..., 0]
    equal = (pixels == first[..., np.newaxis]).all()
    return bool(equal and first.min() >= 0 and first.max() <= 255)


def _small(values: Array) -> Array:
    """A map or its pixels as a picture: of a table of wafers, no more is kept in memory.

    A whole column of numbers comes here too, and has one side that is short or long beyond any
    map's; so it stays, and so do the smallest maps, which weigh nothing.
    """
    sides = values.shape[:2]
    if values.ndim not in (2, 3) or min(sides) < _SHORTEST or max(sides) > _LONGEST:
        return values
    try:
        return picture(values)
    except DataError:  # told when its wafer is read
        return values
