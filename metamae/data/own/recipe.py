"""A recipe: how the user's files become inputs, as plain values that a run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamae.data.dataset import Array
from metamae.data.description import Description
from metamae.data.own.arrays import Arrays, as_arrays
from metamae.data.own.columns import read_column, to_numbers
from metamae.data.own.facts import Asked, Facts
from metamae.data.own.folders import Folder, describe_skipped
from metamae.data.own.frames import Frame
from metamae.data.own.grids import apply_array, fit_array
from metamae.data.own.parts import Part
from metamae.data.own.sequences import apply_sequence, fit_sequence
from metamae.data.own.table import apply_table, fit_table
from metamae.errors import ConfigError, DataError, MetamaeError, reason_of, shown
from metamae.inputs import Tokens

FORMAT = 1


class Reading:
    """What was read of a source, whose files were opened, with what it says of its rows.

    Args:
        raw: Of :func:`metamae.data.own.sources.read_source`.
        asked: What the user named.
        like: The recipe of a run whose inputs these are to be.
    """

    def __init__(self, raw: Any, asked: Asked, like: dict[str, Any] | None = None) -> None:
        """See the class."""
        self.remarks: tuple[str, ...] = ()
        self.opened: dict[str, Any] = {}
        if isinstance(raw, Arrays):
            asked, self.remarks = raw.with_defaults(asked)
        elif isinstance(raw, Frame):
            self.remarks = raw.remarks
        self.array: Array | None = None
        if isinstance(raw, Folder):
            raw = self._open(raw, like)
        self.asked, self.raw = asked, raw
        self.facts: Facts = raw.facts(asked)
        self.remarks += self.facts.remarks
        self.source = raw.without(asked)

    def _open(self, folder: Folder, like: dict[str, Any] | None) -> Folder:
        if like is not None and like["source"] != folder.kind:
            raise _other(f"data of kind {like['source']!r}", folder)
        # Here, for `import metamae` is to be fast: these bring Pillow and SciPy's readers.
        from metamae.data.formats.mel import MELS
        from metamae.data.own.pictures import fit_pictures, read_pictures
        from metamae.data.own.sound import SPECTROGRAM, check_spectrogram, read_sounds

        if folder.kind == "audio":
            if like is not None:
                check_spectrogram(like.get("opened", {}))
            # Runs of earlier revisions have square pictures.
            frames = None if like is None else int(like["opened"].get("frames", MELS))
            self.array, whole, frames, seen = read_sounds(folder, frames)
            self.opened = SPECTROGRAM | {"frames": frames}
        elif like is None:
            self.opened, looked, seen = fit_pictures(folder)
            self.array, whole = read_pictures(self.opened, looked)
        else:
            self.opened = like["opened"]
            self.array, whole = read_pictures(self.opened, folder)
            seen = f"{len(whole)} pictures"
        self.remarks = (f"{folder.name}: {seen}", *describe_skipped(folder, whole))
        return whole

    def fit(self, kind: str, token_size: Sequence[int], training: Array) -> Part:
        """Decide what the rows are, and how they become inputs, by the training rows."""
        source = self.source
        if isinstance(source, Frame):
            return _fit_frame(source, kind, token_size, training)
        if isinstance(source, Arrays):
            source.refuse_vectors()
            title = source.name if len(source.data) == 1 else ""
            fitted = [
                fit_array(
                    array,
                    name,
                    kind=kind,
                    token_size=token_size,
                    training=training,
                    title=title,
                )
                for name, array in source.data.items()
            ]
            return _join({"source": "arrays"}, fitted)
        assert self.array is not None
        name = "spectrogram" if source.kind == "audio" else "image"
        if kind not in ("auto", source.kind):
            raise ConfigError(f"expected kind {source.kind!r} of the folder, got {kind!r}")
        part = fit_array(
            self.array, name, kind="image", token_size=token_size, training=training, told=False
        )
        return _join({"source": source.kind, "opened": self.opened}, [part])

    def apply(self, description: Description) -> Part:
        """Make the inputs of a run.

        Raises:
            DataError: data of another kind, shape or other columns.
        """
        recipe, source = dict(description.recipe), self.source
        try:
            return self._apply(recipe, source, description)
        except MetamaeError:
            raise
        except (KeyError, TypeError, AttributeError, LookupError, ValueError) as fault:
            raise DataError(
                f"expected the recipe of a run on own data, got a damaged one ({reason_of(fault)})"
            ) from fault

    def _apply(self, recipe: dict[str, Any], source: Any, description: Description) -> Part:
        beside = [*recipe["beside"], *vars(self.asked).values()]
        if recipe["source"] == "table":
            if not isinstance(source, Frame):
                raise _other("a table with columns by name", source)
            return apply_table(recipe["parts"]["table"], source, [str(name) for name in beside])
        if recipe["source"] == "letters":
            return _apply_letters(recipe, source, description)
        if recipe["source"] == "series":
            source = _series(source, recipe["columns"])
        if isinstance(source, Folder):
            assert self.array is not None
            source = as_arrays({description.inputs[0].name: self.array}, source.name)
        if not isinstance(source, Arrays):
            raise _other("arrays", source)
        return _apply_arrays(recipe, source, description, beside)


def _other(expected: str, source: Any) -> DataError:
    kinds = {Frame: "a table", Arrays: "arrays"}
    kind = kinds.get(type(source)) or f"a folder of files ({source.kind})"
    return DataError(f"expected {expected}, as the run was trained on, got {kind}: {source.name}")


def _fit_frame(frame: Frame, kind: str, token_size: Sequence[int], training: Array) -> Part:
    names = list(frame.data.columns)
    if kind == "signal":
        arrays = _series(frame, names)
        part = fit_array(
            arrays.data["x"], "x", kind="signal", token_size=token_size, training=training
        )
        return _join({"source": "series", "columns": names}, [part])
    if token_size:
        raise ConfigError("expected no token size for a table: a token is one column")
    if kind == "tokens":
        if len(names) != 1:
            raise ConfigError(
                f"expected one column of sequences for kind 'tokens', got {len(names)}; drop the "
                "others, or leave the kind out: sequences may stand beside other columns"
            )
        column = read_column(frame.data[names[0]].astype(str), names[0], typed=True)
        entry = fit_sequence(names[0], column.texts or [], training)
        recipe = {"source": "letters", "parts": {names[0]: entry}}
        return _letters(recipe, frame)
    if kind not in ("auto", "table"):
        raise ConfigError(f"expected kind table, signal or tokens for a table, got {kind!r}")
    part = fit_table(frame, training)
    guess = " (--as signal where columns are steps of a series)" if _is_series(part) else ""
    first, *rest = part.remarks
    return Part(
        {"source": "table", "parts": {"table": part.recipe}},
        part.inputs,
        part.arrays,
        (f"{frame.name}: {first}{guess}", *rest),
    )


def _is_series(part: Part) -> bool:
    recipe = part.recipe
    return len(recipe["numbers"]) >= 50 and not recipe["categories"] and not recipe["sequences"]


def _letters(recipe: dict[str, Any], frame: Frame) -> Part:
    ((name, entry),) = recipe["parts"].items()
    texts = [str(value).strip() for value in frame.data[name].tolist()]
    alphabet = tuple(entry["alphabet"])
    spec = Tokens(name=name, length=entry["length"], vocabulary=len(alphabet), alphabet=alphabet)
    line = (
        f"{frame.name}: sequences of {entry['length']} letters ({len(alphabet) - 2} different), "
        "one a token"
    )
    return Part(recipe, (spec,), {name: apply_sequence(entry, texts)}, (line,))


def _apply_letters(recipe: dict[str, Any], source: Any, description: Description) -> Part:
    ((name, _),) = recipe["parts"].items()
    if not isinstance(source, Frame) or name not in source.data.columns:
        raise DataError(f"expected a table with the column {name!r}, got {source.name}")
    return _letters(recipe, source)


def _series(source: Any, columns: Sequence[str]) -> Arrays:
    """Columns of numbers as steps of a series, ``(N, T)``."""
    if isinstance(source, Arrays):
        return source
    if not isinstance(source, Frame):
        raise _other("a table of numbers", source)
    missing = [name for name in columns if name not in source.data.columns]
    if missing:
        raise DataError(f"expected {len(columns)} columns in {source.name}, without: {missing[:8]}")
    values = [to_numbers(source.data[name].to_numpy(), name, date=False) for name in columns]
    matrix = np.stack(values, axis=1)
    if np.isnan(matrix).any():
        row, step = np.argwhere(np.isnan(matrix))[0]
        raise DataError(
            f"expected a number in every cell of a series, got none in row {row}, column "
            f"{columns[step]!r} of {source.name}; fill it in, or read it as a table"
        )
    return Arrays({"x": matrix}, source.name)


def _join(recipe: dict[str, Any], parts: Sequence[Part]) -> Part:
    """Several inputs as one part; each keeps its own recipe under its name."""
    inputs = tuple(spec for part in parts for spec in part.inputs)
    recipe = recipe | {
        "parts": {part.inputs[0].name: part.recipe for part in parts},
    }
    return Part(
        recipe,
        inputs,
        {name: rows for part in parts for name, rows in part.arrays.items()},
        tuple(line for part in parts for line in part.remarks),
        {name: scaling for part in parts for name, scaling in part.scaling.items()},
    )


def _apply_arrays(
    recipe: dict[str, Any], source: Arrays, description: Description, beside: Sequence[Any]
) -> Part:
    specs = {spec.name: spec for spec in description.inputs}
    data = {name: array for name, array in source.data.items() if name not in beside}
    if len(specs) == 1 and len(data) == 1:  # one array needs no name
        data = {next(iter(specs)): next(iter(data.values()))}
    missing, unexpected = sorted(specs.keys() - data.keys()), sorted(data.keys() - specs.keys())
    if missing or unexpected:
        raise DataError(
            f"expected arrays {', '.join(specs)} in {source.name}, as the run was trained on, got "
            f"{shown(list(source.data))}"
        )
    parts = [
        apply_array(recipe["parts"][name], data[name], name, spec) for name, spec in specs.items()
    ]
    return _join({"source": recipe["source"]}, parts)
