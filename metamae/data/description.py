"""What a run remembers of its data: enough to read other data of the same kind, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from metamae.data.dataset import Affine, Array, Dataset, Partition, Rows, Task
from metamae.errors import DataError, InputError, reason_of, shown, suggest
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tabular, Tokens

FORMAT = 1

Kind = TypeVar("Kind")
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Signal, Image, Tabular, Tokens)}


def register_input(kind: type[Kind]) -> type[Kind]:
    """Let runs remember a kind of input from outside the package, a dataclass, by its class name.

    It returns the class, and so can decorate it.

    Raises:
        InputError: no dataclass, or a name that another kind has.
    """
    if not dataclasses.is_dataclass(kind) or _KINDS.get(kind.__name__, kind) is not kind:
        raise InputError(f"expected a dataclass with a name of its own, got {shown(kind)}")
    _KINDS[kind.__name__] = kind
    return kind


@dataclass(frozen=True, kw_only=True)
class Description:
    """Inputs, scaling, classes, and how files become arrays.

    Attributes:
        name: Name of the data set.
        inputs: Specifications of the inputs.
        scaling: Input name to scaling, of the training data.
        task: What a probe predicts; ``None`` without labels.
        recipe: How the user's own files become arrays (:mod:`metamae.data.own`), plain values;
            empty for data sets by name, whose arrays are taken as they are.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.data.description import Description
        >>> kept = Description.of(load_dataset("sensors")).to_dict()
        >>> Description.from_dict(kept).inputs[0].token_length
        4
    """

    name: str
    inputs: Inputs
    scaling: Mapping[str, Affine] = field(default_factory=dict)
    task: Task | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset) -> Description:
        """The description of a data set at hand."""
        parts = (dataset.pretrain, dataset.train, dataset.test)
        scaling = next((part.scaling for part in parts if part is not None), {})
        return cls(
            name=dataset.name,
            inputs=dataset.inputs,
            scaling=scaling,
            task=dataset.task,
            recipe=dataset.recipe,
        )

    def partition(
        self, arrays: Mapping[str, Rows], labels: Array | None = None, groups: Array | None = None
    ) -> Partition:
        """Raw arrays, examples first, with these inputs and this scaling."""
        return Partition(
            arrays=arrays, inputs=self.inputs, scaling=self.scaling, labels=labels, groups=groups
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; scalings keep float32 exactly."""
        return {
            "format": FORMAT,
            "name": self.name,
            "inputs": [_spec_to_dict(spec) for spec in self.inputs],
            "scaling": {
                name: {"mean": np.asarray(s.mean).tolist(), "scale": np.asarray(s.scale).tolist()}
                for name, s in self.scaling.items()
            },
            "task": None if self.task is None else dataclasses.asdict(self.task),
            "recipe": dict(self.recipe),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Description:
        """The description that :meth:`to_dict` wrote, checked.

        Raises:
            DataError: values of another form.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format {shown(values['format'])}, known is {FORMAT}")
            scaling = {
                str(name): Affine(*(np.asarray(kept[key], np.float32) for key in ("mean", "scale")))
                for name, kept in values["scaling"].items()
            }
            task = values["task"]
            return cls(
                name=str(values["name"]),
                inputs=tuple(_spec_from_dict(kept) for kept in values["inputs"]),
                scaling=scaling,
                task=None if task is None else Task(**task | {"classes": tuple(task["classes"])}),
                recipe=dict(values["recipe"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as fault:
            raise DataError(
                f"expected the description of a run's data, got another or a damaged one "
                f"({reason_of(fault)})"
            ) from fault


def _spec_to_dict(spec: InputSpec) -> dict[str, Any]:
    kind = type(spec).__name__
    if _KINDS.get(kind) is not type(spec):
        raise InputError(
            f"expected a kind of input that runs can remember ({', '.join(_KINDS)}), got {kind}; "
            "make it a dataclass and call metamae.data.description.register_input on it"
        )
    return {"kind": kind, **dataclasses.asdict(spec)}  # type: ignore[call-overload]


def _spec_from_dict(values: Mapping[str, Any]) -> InputSpec:
    fields = dict(values)
    kind = str(fields.pop("kind"))
    if kind not in _KINDS:
        raise InputError(f"expected an input among {', '.join(_KINDS)}, {suggest(kind, _KINDS)}")
    spec: InputSpec = _KINDS[kind](
        **{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    )
    return spec
