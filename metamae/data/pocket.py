"""The pocket data sets: small real data, embedded in the package, for every modality.

Each set is a NumPy archive and a JSON data card beside it. The card's SHA-256 of the archive is
verified at every load.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from metamae.data.dataset import Affine, Array, Dataset, Partition, Task, choose_token_size
from metamae.errors import DataError
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tabular, Tokens

Card = dict[str, Any]
TokenSize = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How the arrays of one archive become inputs."""

    stands_for: str
    inputs: Callable[[Card, TokenSize], Inputs]
    token_size: TokenSize
    keys: tuple[str, ...] = ("x",)  # array prefixes, one per input
    standardise: tuple[int, ...] | None = None  # axes of the statistics
    divide: float | None = None
    channel_axis: bool = False  # gray images come without one
    groups: Callable[[Mapping[str, Array], str], Array] | None = None  # of the rows of a split


def _signal(card: Card, size: TokenSize) -> Inputs:
    channels, length = card["sample_shape"]
    return (
        Signal(
            name="signal",
            channels=channels,
            length=length,
            token_length=size[0],
            channel_names=tuple(card.get("channels", ())),
        ),
    )


def _image(card: Card, size: TokenSize) -> Inputs:
    *channels, height, width = card["sample_shape"]
    return (
        Image(
            name="image",
            channels=channels[0] if channels else 1,
            height=height,
            width=width,
            patch=(size[0], size[-1]),
            channel_names=tuple(card.get("channels", ())),
        ),
    )


def _columns(card: Card, size: TokenSize) -> Inputs:
    (columns,) = card["sample_shape"]
    return (Tabular(name="row", columns=columns, column_names=tuple(card["columns"])),)


def _letters(card: Card, size: TokenSize) -> Inputs:
    (length,) = card["sample_shape"]
    return (_tokens("sequence", length, card),)


def _image_and_caption(card: Card, size: TokenSize) -> Inputs:
    words = int(card["arrays"]["tokens_train"].split(" ")[0].split("x")[1])
    caption: InputSpec = _tokens("caption", words, card)
    return (*_image(card, size), caption)


def _tokens(name: str, length: int, card: Card) -> Tokens:
    alphabet = tuple(card["vocabulary"])
    return Tokens(name=name, length=length, vocabulary=len(alphabet), alphabet=alphabet)


def _subjects(arrays: Mapping[str, Array], split: str) -> Array:
    return arrays[f"subject_{split}"]


def _clusters(arrays: Mapping[str, Array], split: str) -> Array:
    return arrays[f"cluster_{split}"]


def _prompts(arrays: Mapping[str, Array], split: str) -> Array:
    return arrays[f"prompt_{split}"]


def _blocks_of_scene(arrays: Mapping[str, Array], split: str) -> Array:
    """Blocks of 14 x 14 positions, as those the test rows were drawn by."""
    return _number_rows(arrays[f"position_{split}"] // 14)


def _blocks_of_genome(arrays: Mapping[str, Array], split: str) -> Array:
    """Blocks of 50 kb, as those that were kept in one split."""
    species = arrays["source_pretrain" if split == "pretrain" else f"y_{split}"]
    places = [species, arrays[f"sequence_{split}"], arrays[f"start_{split}"] // 50_000]
    return _number_rows(np.stack([place.astype(np.int64) for place in places], axis=1))


def _number_rows(rows: Array) -> Array:
    """A number for each different row."""
    numbers: Array = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


_RECIPES = {
    "sensors": _Recipe(
        stands_for="pamap2",
        inputs=_signal,
        token_size=(4,),
        standardise=(0, 2),
        groups=_subjects,
    ),
    "basic_motions": _Recipe(
        stands_for="pamap2", inputs=_signal, token_size=(4,), standardise=(0, 2)
    ),
    "tabular": _Recipe(stands_for="higgs", inputs=_columns, token_size=(), standardise=(0,)),
    "multispectral_spatial": _Recipe(
        stands_for="eurosat",
        inputs=_image,
        token_size=(1, 1),
        standardise=(0, 2, 3),
        groups=_blocks_of_scene,
    ),
    "genomes": _Recipe(
        stands_for="genomics", inputs=_letters, token_size=(), groups=_blocks_of_genome
    ),
    "peptides": _Recipe(stands_for="pfam", inputs=_letters, token_size=(), groups=_clusters),
    "vowels": _Recipe(
        stands_for="librispeech", inputs=_signal, token_size=(1,), standardise=(0, 2)
    ),
    "digits": _Recipe(
        stands_for="imagenet32", inputs=_image, token_size=(2, 2), divide=16, channel_axis=True
    ),
    "captioned": _Recipe(
        stands_for="mscoco",
        inputs=_image_and_caption,
        token_size=(2, 2),
        keys=("x", "tokens"),
        divide=16,
        channel_axis=True,
    ),
    "diamonds": _Recipe(stands_for="higgs", inputs=_columns, token_size=(), standardise=(0,)),
    "jobs": _Recipe(stands_for="higgs", inputs=_columns, token_size=(), standardise=(0,)),
    "pens": _Recipe(stands_for="pamap2", inputs=_signal, token_size=(1,), standardise=(0, 2)),
    "voices": _Recipe(
        stands_for="librispeech",
        inputs=_signal,
        token_size=(2,),
        standardise=(0, 2),
        groups=_prompts,
    ),
}

_DAMAGED_CARD = "expected a data card in {}.json, which is damaged"

POCKET = tuple(_RECIPES)
"""Names of the pocket data sets."""

WITHOUT_NEWS: Mapping[str, str] = MappingProxyType(
    {
        "basic_motions": "40 test rows",
        "vowels": "raw inputs leave no room",
        "captioned": "a supervised encoder learns nothing there",
    }
)
"""Pocket data sets that no average over sets holds, for they tell no method from another; and why.
"""


def load_pocket(name: str, token_size: TokenSize = ()) -> Dataset:
    """Load one pocket data set, verified against its card.

    Args:
        name: One of :data:`POCKET`.
        token_size: Steps per token, or patch height and width; the set's own when empty.

    Raises:
        DataError: a missing or damaged file.
        ConfigError: a token size where tokens have none, or one that does not divide the data.

    Example:
        >>> from metamae.data.pocket import load_pocket
        >>> digits = load_pocket("digits")
        >>> digits.inputs[0].tokens, len(digits.test), digits.task.metric
        (16, 1797, 'accuracy')
    """
    recipe, card = _RECIPES[name], read_card(name)
    token_size = choose_token_size(name, token_size, recipe.token_size)
    arrays = _read_arrays(name, card)
    inputs = recipe.inputs(card, token_size)
    scaling = _scaling(recipe, arrays, inputs[0].name)
    partitions: dict[str, Any] = {
        split: _partition(recipe, arrays, split, inputs, scaling)
        for split in ("pretrain", "train", "test")
    }
    classes = tuple(card["classes"])
    task = Task(
        kind="binary" if len(classes) == 2 else "classification",
        metric="accuracy",
        classes=classes,
    )
    return Dataset(
        name=name, inputs=inputs, task=task, stands_for=recipe.stands_for, card=card, **partitions
    )


def stands_for(name: str) -> str:
    """The full data set whose paper preset fits a pocket set.

    Example:
        >>> from metamae.data.pocket import stands_for
        >>> stands_for("sensors")
        'pamap2'
    """
    return _RECIPES[name].stands_for


def read_card(name: str) -> Card:
    """The data card of a pocket set: provenance, licence, splits, shortcuts, reference figures."""
    try:
        card = json.loads(_read(f"{name}.json"))
    except ValueError as fault:  # not JSON, or not UTF-8
        raise DataError(f"{_DAMAGED_CARD.format(name)} ({fault}); reinstall the package") from fault
    if not isinstance(card, dict) or not card.keys() >= {"sample_shape", "classes", "sha256"}:
        raise DataError(f"{_DAMAGED_CARD.format(name)}; reinstall the package")
    return card


def _partition(
    recipe: _Recipe,
    arrays: dict[str, Array],
    split: str,
    inputs: Inputs,
    scaling: dict[str, Affine],
) -> Partition:
    raw = [arrays[f"{key}_{split}"] for key in recipe.keys]
    if recipe.channel_axis:
        raw[0] = raw[0][:, np.newaxis]
    return Partition(
        arrays={spec.name: array for spec, array in zip(inputs, raw, strict=True)},
        inputs=inputs,
        scaling=scaling,
        labels=None if split == "pretrain" else arrays[f"y_{split}"].astype(np.int64),
        groups=None if recipe.groups is None else recipe.groups(arrays, split),
    )


def _scaling(recipe: _Recipe, arrays: dict[str, Array], name: str) -> dict[str, Affine]:
    if recipe.standardise is not None:
        return {name: Affine.standardise(arrays["x_pretrain"], recipe.standardise)}
    if recipe.divide is not None:
        return {name: Affine.divide(recipe.divide)}
    return {}


def _read_arrays(name: str, card: Card) -> dict[str, Array]:
    content = _read(f"{name}.npz")
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"]:
        raise DataError(
            f"expected the embedded data set {name!r} with SHA-256 {card['sha256'][:12]}..., got "
            f"{digest[:12]}... ({len(content)} bytes): the file is damaged; reinstall the package"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError) as fault:
        raise DataError(f"expected a NumPy archive in {name}.npz: {fault}") from fault


def _read(file: str) -> bytes:
    path = resources.files("metamae.data") / "pocket" / file
    try:
        return path.read_bytes()
    except OSError as fault:
        raise DataError(
            f"expected the embedded file {file}, which is missing from this installation "
            f"({fault.strerror}); reinstall the package"
        ) from fault
