"""What the weights of a run are of, as it is kept beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metamae.config.schema import Config
from metamae.data.description import Description
from metamae.errors import CheckpointError, ConfigError, DataError, reason_of, shown

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What the weights of a run are of.

    Attributes:
        config: The resolved configuration.
        description: Inputs, scaling, task and recipe of the data it was trained on.
        step: Optimisation steps taken.
        rows: Examples it was trained on; 0 where that is not known.
        data: Fingerprint of the data; empty where that is not known.
        licence: Licence of the data, as its card says; empty where that is not known.
        versions: Versions and revision that trained it.
    """

    config: Config
    description: Description
    step: int
    rows: int = 0
    data: str = ""
    licence: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model_type": "metamae",
            "format": FORMAT,
            "config": self.config.to_dict(),
            "data": self.data_to_dict(),
            "step": self.step,
            "fingerprint": self.data,
            "versions": dict(self.versions),
        }

    def data_to_dict(self) -> dict[str, Any]:
        """What is known of the data, plain values for JSON."""
        return self.description.to_dict() | {"rows": self.rows, "licence": self.licence}

    @classmethod
    def from_dict(cls, values: Any) -> ModelRecord:
        """The record that :meth:`to_dict` wrote, checked.

        Raises:
            CheckpointError: values of another form.
        """
        try:
            if values["model_type"] != "metamae" or values["format"] != FORMAT:
                raise ValueError(
                    f"a {shown(values['model_type'])} of format {shown(values['format'])}, known "
                    f"is metamae of format {FORMAT}"
                )
            step, rows = values["step"], values["data"].get("rows", 0)
            if type(step) is not int or type(rows) is not int or step < 0 or rows < 0:
                raise ValueError(f"steps {shown(step)} and rows {shown(rows)}")
            return cls(
                config=Config.from_dict(values["config"]),
                description=Description.from_dict(values["data"]),
                step=step,
                rows=rows,
                data=str(values["fingerprint"]),
                licence=str(values["data"].get("licence", "")),
                versions={str(name): str(text) for name, text in values["versions"].items()},
            )
        except KeyError as fault:
            reason = f"{fault} is missing"
        except (TypeError, ValueError, AttributeError, ConfigError, DataError) as fault:
            reason = reason_of(fault)
        raise CheckpointError(
            f"expected what belongs to the weights of a metamae model, got other or damaged values "
            f"({reason}); save the model again"
        )
