"""Result rows: one per encoder, data set probed on, and protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from metamae.arguments import as_path
from metamae.errors import DataError, reason_of, shown
from metamae.evaluation.result import Evaluation
from metamae.files import read_json, write_json

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


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict[str, float]": dict}
"""Types in a file by annotation."""


@dataclass(frozen=True, kw_only=True)
class Result(Evaluation):
    """The evaluation of one encoder: what was measured, and of which run.

    One for every (data set, transfer, method, variant, seed, protocol, probe seed); files hold it
    without predictions.

    Attributes:
        dataset: Data set that the encoder was pretrained on.
        transfer: Data set that it was probed on; often the same.
        method: Method name.
        variant: Name of a set of overrides, ``default`` for none.
        seed: Seed of pretraining.
        probe_seed: Seed of the probe, its orders, cuts and draws; a sweep uses the same.
        preset: Preset of the settings.
        steps: Pretraining steps.
        batch_size: Examples per step.
        pretrain_seconds: Time spent in them.
        probe_seconds: Time of this protocol, features not counted.
        device: Torch device type.
        hardware: Name of the processor or accelerator.
        torch: Torch version.
        revision: Source revision.
        data: Fingerprints of the data it was pretrained and probed on, ``PRETRAINED/PROBED``; empty
            in rows of earlier revisions, ``-`` where the run is of one.
    """

    dataset: str
    transfer: str
    method: str
    variant: str = DEFAULT
    seed: int
    probe_seed: int
    preset: str
    steps: int
    batch_size: int
    pretrain_seconds: float
    probe_seconds: float
    device: str
    hardware: str
    torch: str
    revision: str
    data: str = ""

    def __post_init__(self) -> None:
        """Check types, for rows come from files."""
        for entry in _columns():
            value = getattr(self, entry.name)
            numbers = value.values() if isinstance(value, dict) else [value]
            right = isinstance(value, _KINDS[str(entry.type)]) and not isinstance(value, bool)
            if isinstance(value, dict):
                right &= all(type(number) in (int, float) for number in numbers)
            if not right:
                raise TypeError(f"expected {entry.name} to be {entry.type}, got {shown(value)}")

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


def _columns() -> list[Field[Any]]:
    """Fields of a row in a file."""
    return [entry for entry in fields(Result) if entry.name != "predictions"]


def read_results(path: Path) -> list[Result]:
    """Rows of a result file; none if there is no file.

    Raises:
        DataError: a damaged file, or one that holds something else.
    """
    path = as_path(path, "a result file")
    if not path.exists():
        return []
    try:
        return [Result(**row) for row in read_json(path)]
    except (ValueError, TypeError, AttributeError) as fault:
        raise DataError(
            f"expected result rows in {path}, got a damaged file ({reason_of(fault)}); move it away"
        ) from fault


def write_results(path: Path, rows: Iterable[Result]) -> None:
    """Write a result file atomically."""
    names = [entry.name for entry in _columns()]
    write_json(path, [{name: getattr(row, name) for name in names} for row in rows])


UNKNOWN = "-"
"""In place of the fingerprint that a run of an earlier revision does not have."""


def describe_data(pretrained: str, probed: str) -> str:
    """Two fingerprints as a row has them.

    Example:
        >>> from metamae.report.rows import describe_data
        >>> describe_data("", "3dcb96bdebe8f761")
        '-/3dcb96bdebe8f761'
    """
    return f"{pretrained or UNKNOWN}/{probed}"


def mixed_data(rows: Iterable[Result]) -> list[str]:
    """A line for every data set of which rows were made with different data.

    Example:
        >>> from metamae.report.rows import mixed_data
        >>> mixed_data([])
        []
    """
    seen: dict[str, set[str]] = {}
    for row in rows:
        if row.data:
            pretrained, _, probed = row.data.partition("/")
            seen.setdefault(row.dataset, set()).update({pretrained} - {UNKNOWN})
            seen.setdefault(row.transfer, set()).add(probed)
    return [
        f"rows of {name!r} come from different data (fingerprints {', '.join(sorted(found))}): "
        "their differences are not those of methods; run again what is older"
        for name, found in seen.items()
        if len(found) > 1
    ]


def find_results(paths: Sequence[Path]) -> list[Result]:
    """All rows of files, and of the result files anywhere below folders.

    Of rows that differ in values only, the last one counts; other steps make other rows.

    Raises:
        DataError: a path that is not there, or a folder without results.
    """
    return list({(row.key, row.steps): row for row in all_results(paths)}.values())


def all_results(paths: Sequence[Path]) -> list[Result]:
    """The same with every row, also those that others of the same key follow.

    Raises:
        DataError: a path that is not there, or a folder without results.
    """
    found = []
    for path in [as_path(path, "results") for path in paths]:
        files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if _is_result(f)]
        rows = [row for file in files for row in read_results(file)]
        if not rows:
            raise DataError(
                f"expected results in {path}, found none; name a folder of metamae sweep, "
                "metamae probe or the demo, or a result file"
            )
        found += rows
    return found


def has_results(paths: Sequence[Path]) -> bool:
    """Whether there is a result file among paths or below them, or a path that is none."""
    return any(
        not path.is_dir() or any(_is_result(file) for file in path.rglob("*.json"))
        for path in paths
    )


def _is_result(path: Path) -> bool:
    return path.name in ("results.json", "probes.json")
