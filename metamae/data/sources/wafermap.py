"""WaferMap: maps of failed dies on wafers, by pattern (WM-811K, Wu et al. 2015)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from metamae.data.dataset import Affine, Array, Partition, Rows, Task
from metamae.data.formats.archives import Folder
from metamae.data.formats.libraries import need_module
from metamae.data.formats.pickles import plain_array, read_frame
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Layout, Source, Stored, packed_or_not
from metamae.data.preparing.splits import ninety_ten, shuffled
from metamae.data.preparing.writer import Writer
from metamae.errors import DataError
from metamae.inputs import Image, Inputs

SIZE, CHANNELS = 32, 3
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
MAPS, FAILURES = "waferMap", "failureType"
_MOST_DIES = 50_000_000
"""Of a wafer, and wafers of a file: the largest published map has 90,000."""
_NESTED = 8
"""Lists around a map or a failure."""
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
    for name, wafer, failure in _entries(raw, writer.folder):
        with writer.reading(name):
            kind, pixels = failure_name(failure), picture(wafer)
            if kind is None:
                unlabelled.append(pixels)
            elif kind in CLASSES:
                images.append(pixels)
                labels.append(CLASSES.index(kind))
            else:
                raise DataError(f"expected a failure among {', '.join(CLASSES)}, got {kind!r}")
    pretraining = ninety_ten(shuffled(unlabelled.rows))[0]
    writer.partition("pretrain", {"image": "unlabelled_images"}, index=pretraining)
    writer.probe({"image": "images"}, "labels", *ninety_ten(shuffled(images.rows)))


def _entries(raw: Raw, scratch: Path) -> Iterator[tuple[str, Any, Any]]:
    """Name, map and failure of every wafer, from whichever files there are."""
    if "matlab" in raw.paths:
        yield from _matlab_entries(raw, scratch)
        return
    for role, path in raw.paths.items():
        with raw.open(role, "*.pkl") as file:
            table = read_frame(file, str(path))
        if MAPS not in table or (FAILURES not in table and role != "unlabeled"):
            raise DataError(
                f"expected columns {MAPS} and {FAILURES} in {path}, got {', '.join(table)}"
            )
        failures = [None] * len(table[MAPS]) if role == "unlabeled" else table[FAILURES]
        for number, (wafer, failure) in enumerate(zip(table[MAPS], failures, strict=True)):
            yield f"wafer {number} of {path.name}", wafer, failure


def _matlab_entries(raw: Raw, scratch: Path) -> Iterator[tuple[str, Any, Any]]:
    """Entries of a MATLAB 7.3 file, which is HDF5: cells of references, one read at a time."""
    h5py = need_module("h5py")
    path = raw.paths["matlab"]
    with _unpacked(raw, scratch) as matlab, h5py.File(matlab, "r") as file:
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


@contextmanager
def _unpacked(raw: Raw, scratch: Path) -> Iterator[Path]:
    """The .mat file on disk: HDF5 is read by seeking, which a compressed archive cannot do."""
    bundle = raw.bundle("matlab")
    name = bundle.one("*.mat")
    if isinstance(bundle, Folder):
        yield bundle.path / name
        return
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "unpacked.mat"
        with raw.open("matlab", "*.mat") as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        yield path


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
        >>> from metamae.data.sources.wafermap import failure_name
        >>> failure_name("Edge-Ring"), failure_name(np.array([["none"]])), failure_name([])
        ('edge-ring', 'none', None)
    """
    for _ in range(_NESTED):
        if not isinstance(value, list | np.ndarray):
            return value.strip().lower() if isinstance(value, str) and value.strip() else None
        if len(value) == 0 if isinstance(value, list) else value.size == 0:
            return None
        value = value[0] if isinstance(value, list) else value.ravel()[0]
    raise DataError(f"expected a failure in at most {_NESTED} lists, got more")


def picture(wafer: Any) -> Array:
    """A map as gray pixels ``(1, 32, 32)``: die values 0, 1, 2 become 0, 127, 255, then resized.

    Pixels ``(H, W, 3)``, which some tables hold instead, are taken as they are.
    """
    for _ in range(_NESTED):
        wafer = wafer[0] if isinstance(wafer, list) and len(wafer) == 1 else wafer
    dies = plain_array(wafer)
    if dies.ndim == 3 and dies.shape[-1] == CHANNELS and dies.dtype == np.uint8:
        pixels = dies[..., 0]
    elif dies.ndim == 2 and dies.size and _are_dies(dies):
        pixels = (dies * 127.5).astype(np.uint8)
    else:
        raise DataError(f"expected a map (H, W) of 0, 1 and 2, got {dies.dtype} {dies.shape}")
    pillow = need_module("PIL.Image")
    whole = pillow.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(whole.resize((SIZE, SIZE), pillow.Resampling.BILINEAR))[np.newaxis]


def _are_dies(dies: Array) -> bool:
    if dies.dtype.kind in "iu":  # a tenth of the time
        return bool(dies.min() >= 0 and dies.max() <= 2)
    return bool(np.isin(dies, (0, 1, 2)).all())


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
            Layout("published as one table", {"all": "LSWMD.pkl"}),
            Layout.within("dabs", "semiconductors", _TABLES),
            Layout.within("metamae", "wafer_map", _TABLES),
        ),
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
