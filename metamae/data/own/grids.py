"""Arrays become signals, images, tables or symbols: layout, length, scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from metamae.data.dataset import Affine, Array
from metamae.data.own.guessing import channels_last, choose_length, choose_patch, guess_kind
from metamae.data.own.laid import Laid, moments
from metamae.data.own.numbers import apply_number, fit_number
from metamae.data.own.parts import Part
from metamae.errors import ConfigError, DataError
from metamae.inputs import Image, InputSpec, Signal, Tabular, Tokens

FAR = 1000.0
"""Deviations between zero and the mean from which float32 would lose digits that matter."""


def fit_array(
    array: Array,
    name: str,
    *,
    kind: str,
    token_size: Sequence[int],
    training: Array,
    title: str = "",
    told: bool = True,
) -> Part:
    """Decide what an array is, and fit it on its training rows; ``told`` says what it is.

    Raises:
        DataError: values that are not finite, or too few for tokens.
    """
    guessed, why = guess_kind(array, name)
    if kind == "auto":
        kind = guessed
        why = f"taken for {_A[kind]} by its shape, {why}; overrule with --as (kind=)"
    else:
        why = f"{_A[kind]}, as asked"
    fit = {"table": _fit_table, "tokens": _fit_tokens}.get(kind)
    if fit is not None:
        if array.ndim != 2:
            raise DataError(f"expected {name} of shape (N, L) for {_A[kind]}, got {array.shape}")
        if token_size:
            raise ConfigError(f"expected no token size for {_A[kind]}: a token is one value of it")
        part = fit(array, name, training)
    elif kind in ("signal", "image"):
        part = _fit_grid(array, name, kind, token_size, training)
    else:
        raise ConfigError(f"expected a folder of sounds for kind {kind!r}, got an array")
    first, *rest = part.remarks
    first = f"{title or name}: {why}; {first}" if told else f"{title or name}: {first}"
    return replace(part, remarks=(first, *rest))


_A = {
    "table": "a table",
    "tokens": "sequences of symbols (tokens)",
    "signal": "signals",
    "image": "images",
    "audio": "sound",
}


def apply_array(recipe: dict[str, Any], array: Array, name: str, spec: InputSpec) -> Part:
    """Other rows of the same shape.

    Raises:
        DataError: another shape, or values that do not fit.
    """
    shape = tuple(recipe["shape"])
    if tuple(array.shape[1:]) != shape:
        raise DataError(
            f"expected {name} of shape (N, {', '.join(map(str, shape))}), as the run was trained "
            f"on, got {tuple(array.shape)}"
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"expected numbers in {name}, got values of type {array.dtype}")
    if recipe["kind"] == "table":
        values = np.asarray(array, np.float64)
        _refuse_infinite(values, name)
        matrix = _matrix(recipe, values)
        if np.isnan(matrix).any() and not getattr(spec, "gaps", False):
            row, column = np.argwhere(np.isnan(matrix))[0]
            raise DataError(
                f"expected a number in every row of column {column} of {name}, got none in row "
                f"{row}: the run was trained on data without missing numbers"
            )
        return Part(recipe, (spec,), {name: matrix})
    if recipe["kind"] == "tokens":
        _check_symbols(array, name, recipe["vocabulary"])
        return Part(recipe, (spec,), {name: array})
    moments(array, name)
    return Part(recipe, (spec,), {name: Laid(array, recipe)})


def _fit_table(array: Array, name: str, training: Array) -> Part:
    values = np.asarray(array, np.float64)
    _refuse_infinite(values, name)
    columns = [fit_number(values[training, n]) for n in range(values.shape[1])]
    kept = [{"column": n} | fitted for n, fitted in enumerate(columns) if fitted is not None]
    if len(kept) < 2:
        raise DataError(f"expected two columns or more that vary in {name}, got {len(kept)}")
    recipe: dict[str, Any] = {
        "kind": "table",
        "shape": [values.shape[1]],
        "numbers": kept,
    }
    matrix = _matrix(recipe, values)
    missing = int(np.isnan(matrix).sum())
    spec = Tabular(
        name=name,
        columns=len(kept),
        column_names=tuple(f"column {entry['column']}" for entry in kept),
        gaps=missing > 0,
    )
    lines = [f"{len(kept)} columns, {missing or 'no'} cells missing"]
    constant = [n for n, fitted in enumerate(columns) if fitted is None]
    if constant:
        lines.append(f"constant columns left out: {', '.join(map(str, constant[:12]))}")
    return Part(recipe, (spec,), {name: matrix}, tuple(lines))


def _refuse_infinite(values: Array, name: str) -> None:
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise DataError(
            f"expected finite numbers in {name}, got {values[row, column]} in row {row}, column "
            f"{column}; write NaN where a number is missing"
        )


def _matrix(recipe: dict[str, Any], values: Array) -> Array:
    columns = [apply_number(entry, values[:, entry["column"]]) for entry in recipe["numbers"]]
    return np.stack(columns, axis=1)


def _fit_tokens(array: Array, name: str, training: Array) -> Part:
    if array.shape[1] < 2:
        raise DataError(f"expected two symbols or more a row in {name}, got {array.shape[1]}")
    _check_symbols(array, name, None)
    vocabulary = int(array.max()) + 1
    if vocabulary < 2:
        raise DataError(f"expected two symbols or more in {name}, got only {int(array.max())}")
    recipe = {"kind": "tokens", "shape": [array.shape[1]], "vocabulary": vocabulary}
    spec = Tokens(name=name, length=array.shape[1], vocabulary=vocabulary)
    return Part(recipe, (spec,), {name: array}, (f"{vocabulary} symbols, one a token",))


def _check_symbols(array: Array, name: str, vocabulary: int | None) -> None:
    whole = array.dtype.kind in "iub" or bool((array == np.floor(array)).all())
    low, high = (array.min(), array.max()) if whole else (0, 0)
    limit = "" if vocabulary is None else f" below {vocabulary}, as the run was trained on"
    if not whole or low < 0 or (vocabulary is not None and high >= vocabulary):
        got = "others" if not whole else low if low < 0 else high
        raise DataError(f"expected symbols as whole numbers from 0{limit} in {name}, got {got}")


def _fit_grid(
    array: Array, name: str, kind: str, token_size: Sequence[int], training: Array
) -> Part:
    recipe, spec = _lay_out(array, name, kind, token_size)
    mean, deviation = moments(Laid(array, recipe), name, training)
    constant = np.flatnonzero(deviation == 0)
    deviation = np.where(deviation == 0, 1.0, deviation)
    # Beyond these float32 overflows, or loses the digits in which examples differ.
    odd = np.abs(mean) > FAR * deviation
    unit = 2.0 ** round(float(np.log2(deviation.max())))
    if odd.any() or not 1e-9 < deviation.min() <= deviation.max() < 1e9:
        recipe |= {"offset": mean.tolist(), "unit": unit}
        mean, deviation = np.zeros_like(mean), deviation / unit
    shape = (-1, 1) if kind == "signal" else (-1, 1, 1)
    scaling = Affine(
        mean.reshape(shape).astype(np.float32), deviation.reshape(shape).astype(np.float32)
    )
    lines = _describe(recipe, spec)
    if len(constant):
        lines.append(f"{name}: constant channels: {', '.join(map(str, constant[:12].tolist()))}")
    return Part(recipe, (spec,), {name: Laid(array, recipe)}, tuple(lines), {name: scaling})


def _lay_out(
    array: Array, name: str, kind: str, token_size: Sequence[int]
) -> tuple[dict[str, Any], InputSpec]:
    sides = 1 if kind == "signal" else 2
    shape = tuple(array.shape[1:])
    if len(shape) not in (sides, sides + 1):
        raise DataError(
            f"expected {name} with {sides + 1} or {sides + 2} axes for {_A[kind]}, got shape "
            f"{tuple(array.shape)}"
        )
    if len(shape) == sides:
        layout, channels, sizes = "flat", 1, shape
    elif channels_last(shape, kind):
        layout, channels, sizes = "channels_last", shape[-1], shape[:-1]
    else:
        layout, channels, sizes = "channels_first", shape[0], shape[1:]
    recipe: dict[str, Any] = {"kind": kind, "shape": list(shape), "layout": layout}
    if kind == "signal":
        if sizes[0] < 2:
            raise DataError(f"expected two steps or more in {name}, got {sizes[0]}")
        step = choose_length(sizes[0], token_size)
        recipe["kept"] = [[0, sizes[0] // step * step]]
        return recipe, Signal(
            name=name, channels=channels, length=sizes[0] // step * step, token_length=step
        )
    patch = choose_patch(sizes[0], sizes[1], token_size)
    kept = [size // side * side for size, side in zip(sizes, patch, strict=True)]
    recipe["kept"] = [[(size - k) // 2, k] for size, k in zip(sizes, kept, strict=True)]
    return recipe, Image(name=name, channels=channels, height=kept[0], width=kept[1], patch=patch)


def _describe(recipe: dict[str, Any], spec: InputSpec) -> list[str]:
    lines = []
    where = {
        "flat": "no axis for it",
        "channels_last": "channels last",
        "channels_first": "channels first",
    }
    if isinstance(spec, Signal):
        cut = recipe["shape"][-1 if recipe["layout"] != "channels_last" else 0] - spec.length
        lines.append(
            f"{spec.channels} channel{'s' * (spec.channels > 1)} ({where[recipe['layout']]}), "
            f"{spec.length} steps in {spec.tokens} tokens of {spec.token_length} "
            "(--token-size to change)"
            + (f"; the last {cut} steps fill no token and are cut off" if cut else "")
        )
    if isinstance(spec, Image):
        lines.append(
            f"{spec.channels} channel{'s' * (spec.channels > 1)} ({where[recipe['layout']]}), "
            f"{spec.height} x {spec.width} in {spec.tokens} patches of {spec.patch[0]} x "
            f"{spec.patch[1]} (--token-size to change)"
            + ("; edges that fill no patch are cut off" if _is_cut(recipe) else "")
        )
    return lines


def _is_cut(recipe: dict[str, Any]) -> bool:
    sizes = {"flat": recipe["shape"], "channels_last": recipe["shape"][:-1]}.get(
        recipe["layout"], recipe["shape"][1:]
    )
    return [size for _, size in recipe["kept"]] != list(sizes)
