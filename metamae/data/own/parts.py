"""What every kind of own data becomes: a recipe, input specifications, and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metamae.data.dataset import Affine, Rows
from metamae.inputs import InputSpec


@dataclass(frozen=True)
class Part:
    """Inputs made of a source.

    Attributes:
        recipe: Plain values with which other data of the kind become the same inputs.
        inputs: Specifications.
        arrays: Input name to rows, all of the source.
        remarks: What was decided.
        scaling: Input name to scaling, where the input has one.
    """

    recipe: dict[str, Any]
    inputs: tuple[InputSpec, ...]
    arrays: Mapping[str, Rows]
    remarks: tuple[str, ...] = ()
    scaling: Mapping[str, Affine] = field(default_factory=dict)
