"""Own data become a data set; other data of the kind become examples for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metamae.data.dataset import Array, Dataset, Partition, Selected
from metamae.data.description import Description
from metamae.data.own.facts import Asked
from metamae.data.own.guessing import check_kind
from metamae.data.own.parts import Part
from metamae.data.own.recipe import FORMAT, Reading
from metamae.data.own.sources import Source, name_of, read_source
from metamae.data.own.splitting import RowSplit, split_rows
from metamae.data.own.targets import Targets, read_known, read_targets, scale_codes
from metamae.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A data set made of own data.

    Attributes:
        dataset: It; its recipe reads other data of the kind.
        ids: Names of the rows of each partition that is there.
        remarks: What was guessed, and how to overrule it.
    """

    dataset: Dataset
    ids: Mapping[str, list[str]]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows that a run can read, in the order of their source.

    Attributes:
        partition: Inputs, and labels where they were asked for: -1 or NaN where a row has none.
        ids: Names of the rows.
        remarks: What of them the run did not know.
    """

    partition: Partition
    ids: list[str]
    remarks: tuple[str, ...] = ()


def open_data(
    source: Source,
    *,
    label: str = "",
    ids: str = "",
    group: str = "",
    drop: Sequence[str] = (),
    split: str = "",
    kind: str = "auto",
    token_size: Sequence[int] = (),
    test_share: float = 0.2,
    seed: int = 0,
    pretrain_on_test: bool = False,
    skip_bad: bool = False,
    like: Description | None = None,
) -> Opened:
    """Open a table, arrays, or a folder of pictures or sounds.

    Args:
        source: A path (``.csv``, ``.tsv``, ``.parquet``, ``.npy``, ``.npz``, a folder), an array,
            a data frame, or arrays by name.
        label: What a probe is to predict: a column, a key, or a file with one value a row. Key
            ``y`` and subfolders are taken without being named. Empty: there is no task.
        ids: Names of the rows, in the same way.
        group: Rows of one group are all for training or all for testing.
        drop: Columns or keys to leave out.
        split: Says of every row whether it is for ``train`` or ``test``.
        kind: ``table``, ``signal``, ``image``, ``tokens`` or ``audio``; ``auto`` guesses.
        token_size: Steps of a token, or height and width of a patch; empty chooses 16 to 64 tokens.
        test_share: Share of labelled rows that is drawn for testing.
        seed: Seed of that draw.
        pretrain_on_test: Whether to pretrain on test rows too, without their labels.
        skip_bad: Whether to leave out files that cannot be read.
        like: A run's description, to make its inputs, with its scaling and levels.

    Raises:
        DataError: what cannot be read or learned from.
        ConfigError: a kind or token size that does not fit.
        MissingLibraryError: a table without pandas.

    Example:
        >>> import numpy as np
        >>> from metamae.data.own import open_data
        >>> signals = np.random.default_rng(0).normal(size=(20, 3, 100))
        >>> opened = open_data({"x": signals, "y": np.arange(20) % 2})
        >>> opened.dataset.inputs[0].tokens, len(opened.dataset.need("test"))
        (50, 4)
    """
    check_kind(kind)
    asked = Asked(label=label, ids=ids, group=group, split=split, drop=drop)
    raw = read_source(source, kind=kind, skip_bad=skip_bad)
    reading = Reading(raw, asked, None if like is None else _recipe_of(like))
    labels, name = reading.facts.labels, reading.asked.label or "subfolder"
    targets = None if labels is None else read_targets(labels, name)
    rows = split_rows(
        reading.facts,
        targets,
        test_share=test_share,
        seed=seed,
        pretrain_on_test=pretrain_on_test,
    )
    if not len(rows.pretrain):
        raise DataError("expected rows to pretrain on, all are marked for testing")
    part = reading.fit(kind, token_size, rows.pretrain) if like is None else reading.apply(like)
    if like is None:
        if targets is not None and rows.train is not None:
            part.recipe["target"] = targets.scale_of(rows.train)
        part.recipe.update(_beside(reading, test_share, seed, pretrain_on_test, targets))
    remarks = (
        *reading.remarks,
        *part.remarks,
        *(() if targets is None else (targets.remark,)),
        rows.remark,
    )
    dataset, names = _assemble(name_of(source), part, reading, rows, targets, like)
    return Opened(dataset=dataset, ids=names, remarks=remarks)


def _beside(
    reading: Reading, test_share: float, seed: int, pretrain_on_test: bool, targets: Targets | None
) -> dict[str, Any]:
    asked = reading.asked
    named = [asked.label, asked.ids, asked.group, asked.split, *asked.drop]
    held_out = targets is not None or reading.facts.marks is not None
    return {
        "format": FORMAT,
        "beside": [name for name in named if name],
        "ids": asked.ids,
        "split": {
            "label": asked.label,
            "group": asked.group,
            "split": asked.split,
            "test_share": test_share,
            "seed": seed,
            "held_out": held_out and not pretrain_on_test,
        },
    }


def _assemble(
    name: str,
    part: Part,
    reading: Reading,
    rows: RowSplit,
    targets: Targets | None,
    like: Description | None,
) -> tuple[Dataset, dict[str, list[str]]]:
    ids: dict[str, list[str]] = {}
    parts: dict[str, Partition | None] = {}
    scaling = part.scaling if like is None else like.scaling
    for which in ("pretrain", "train", "test"):
        index: Array | None = getattr(rows, which)
        parts[which] = None
        if index is not None:
            labels = None
            if targets is not None and which != "pretrain":
                labels = scale_codes(targets.codes[index], targets.scale_of(rows.train))
            groups = None if reading.facts.groups is None else reading.facts.groups[index]
            arrays = {key: Selected(array, index) for key, array in part.arrays.items()}
            parts[which] = Partition(arrays, part.inputs, scaling, labels, groups)
            ids[which] = [reading.facts.ids[row] for row in index]
    dataset = Dataset(
        name=name,
        inputs=part.inputs,
        task=None if targets is None else targets.task,
        recipe=part.recipe if like is None else like.recipe,
        pretrain=parts["pretrain"],
        train=parts["train"],
        test=parts["test"],
    )
    return dataset, ids


def read_like(
    source: Source,
    description: Description,
    *,
    label: str = "",
    ids: str = "",
    skip_bad: bool = False,
) -> Examples:
    """Read other data of the kind that a run was trained on, every row in its order.

    Columns may stand in any order; those that the run knew as label, ids or the like may be there.

    Args:
        source: As :func:`open_data`'s.
        description: What the run remembers of its data.
        label: Column, key or file with labels of the run's task; empty reads none.
        ids: Names of the rows, in the same way.
        skip_bad: Whether to leave out files that cannot be read.

    Raises:
        DataError: other columns (missing and unexpected ones are named), shapes or classes.

    Example:
        >>> import numpy as np
        >>> from metamae.data.description import Description
        >>> from metamae.data.own import open_data, read_like
        >>> signals = np.random.default_rng(0).normal(size=(20, 3, 100))
        >>> description = Description.of(open_data(signals).dataset)
        >>> len(read_like(signals[:5], description).partition)
        5
    """
    recipe = _recipe_of(description)
    raw = read_source(source, skip_bad=skip_bad)
    if not ids and recipe.get("ids") in _names(raw):
        ids = str(recipe["ids"])
    reading = Reading(raw, Asked(label=label, ids=ids), recipe)
    part = reading.apply(description)
    labels = None
    if label:
        if description.task is None:
            raise DataError(f"expected a run with a task to read labels {label!r}, it has none")
        assert reading.facts.labels is not None
        codes = read_known(reading.facts.labels, description.task, label)
        labels = scale_codes(codes, recipe.get("target", {}))
    return Examples(
        partition=description.partition(part.arrays, labels),
        ids=reading.facts.ids,
        remarks=(*part.remarks, *reading.remarks),
    )


def _recipe_of(description: Description) -> dict[str, Any]:
    recipe = dict(description.recipe)
    if recipe.get("format") != FORMAT:
        raise DataError(
            f"expected a run on own data, got one on {description.name!r}, which has no recipe for "
            "files; give it arrays, or train on your data by their path"
        )
    return recipe


def _names(raw: Any) -> list[str]:
    """Columns or keys that a source has."""
    data = getattr(raw, "data", None)
    return [] if data is None else [str(name) for name in data]
