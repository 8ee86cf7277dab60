"""Result rows: one per encoder, data set probed on, and protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from metamae.errors import DataError
from metamae.files import write_json

DEFAULT = "default"
"""Name of the variant without overrides."""


class Key(NamedTuple):
    """What identifies a row in a result file."""

    dataset: str
    transfer: str
    method: str
    variant: str
    seed: int
    protocol: str
    probe_seed: int


_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict[str, float]": dict}


def _check_types(row: Any) -> None:
    """Raise ``TypeError`` unless a row's fields, which may come from a file, have their types."""
    for entry in fields(row):
        value, kind = getattr(row, entry.name), _TYPES[str(entry.type)]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"expected {entry.name} to be {entry.type}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one (data set, transfer, method, variant, seed, protocol, probe seed).

    Attributes:
        dataset: Data set that the encoder was pretrained on.
        transfer: Data set that it was probed on; often the same.
        method: Method name.
        variant: Name of a set of overrides, ``default`` for none.
        seed: Seed of pretraining.
        probe_seed: Seed of the probe, its orders, cuts and draws; a sweep uses the same.
        protocol: Evaluation protocol, see :func:`metamae.evaluation.protocols.evaluate`.
        settings: The protocol's settings in words.
        metric: Name of the metric.
        value: Test metric: last epoch, or mean over draws of labels.
        spread: Sample deviation over draws of labels; 0 where there is one fit.
        draws: Draws of labels.
        train_value: Metric on the rows the probe was fitted on.
        extra: Further numbers: best epoch, chosen strength, the metric with ignored labels.
        preset: Preset of the settings.
        steps: Pretraining steps.
        batch_size: Examples per step.
        pretrain_seconds: Time spent in them.
        probe_seconds: Time of this protocol, features not counted.
        device: Torch device type.
        hardware: Name of the processor or accelerator.
        torch: Torch version.
        revision: Source revision.
    """

    dataset: str
    transfer: str
    method: str
    variant: str = DEFAULT
    seed: int
    probe_seed: int
    protocol: str
    settings: str
    metric: str
    value: float
    spread: float = 0.0
    draws: int = 1
    train_value: float
    extra: dict[str, float] = field(default_factory=dict)
    preset: str
    steps: int
    batch_size: int
    pretrain_seconds: float
    probe_seconds: float
    device: str
    hardware: str
    torch: str
    revision: str

    def __post_init__(self) -> None:
        """Check types, for rows come from files."""
        _check_types(self)

    @property
    def key(self) -> Key:
        """What identifies it."""
        return Key(
            self.dataset,
            self.transfer,
            self.method,
            self.variant,
            self.seed,
            self.protocol,
            self.probe_seed,
        )


def read_results(path: Path) -> list[Result]:
    """Rows of a result file; none if there is no file.

    Raises:
        DataError: a damaged file, or one that holds something else.
    """
    if not path.exists():
        return []
    try:
        return [Result(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError, AttributeError) as fault:
        raise DataError(
            f"expected result rows in {path}, got a damaged file ({fault}); move it away"
        ) from fault


def write_results(path: Path, rows: Iterable[Result]) -> None:
    """Write a result file atomically."""
    write_json(path, [asdict(row) for row in rows])


def find_results(paths: Sequence[Path]) -> list[Result]:
    """All rows of files, and of the result files anywhere below folders.

    Of rows that differ in values only, the last one counts; other steps make other rows.

    Raises:
        DataError: a path that is not there, or a folder without results.
    """
    found: dict[tuple[Key, int], Result] = {}
    for path in paths:
        files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if _is_result(f)]
        rows = [row for file in files for row in read_results(file)]
        if not rows:
            raise DataError(
                f"expected results in {path}, found none; name a folder of metamae sweep, "
                "metamae probe or the demo, or a result file"
            )
        found |= {(row.key, row.steps): row for row in rows}
    return list(found.values())


def _is_result(path: Path) -> bool:
    return path.name in ("results.json", "probes.json")
