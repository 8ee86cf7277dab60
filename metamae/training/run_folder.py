"""What a run leaves in its folder: configuration, checkpoint and history, and how to read them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metamae.arguments import as_path
from metamae.config.schema import Config
from metamae.data import POCKET, SOURCES, load_dataset
from metamae.data.description import Description
from metamae.errors import CheckpointError, ConfigError, reason_of
from metamae.files import parse_yaml, read_json, read_text
from metamae.inputs import Inputs
from metamae.methods.baselines.supervised import stored_task
from metamae.methods.building import build_method
from metamae.methods.method import Method
from metamae.model.mask_rules import share_grows
from metamae.training.checkpoint import Checkpoint, check_series
from metamae.training.record import FORMAT, ModelRecord

CHECKPOINT = "checkpoint.pt"
SHARDS = "shards"
STATE = "state.pt"
CONFIG = "config.yaml"
HISTORY = "history.json"
DATA = "data.json"


@dataclass(frozen=True)
class History:
    """Logged numbers: name to a list of ``[step, value]`` pairs."""

    series: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, step: int, **values: float) -> None:
        """Append one value to each named series."""
        for name, value in values.items():
            self.series.setdefault(name, []).append([step, value])


def newest_shards(run_dir: Path) -> Path | None:
    """The folder of the newest complete checkpoint in shards (:mod:`metamae.training.shards`).

    Example:
        >>> import tempfile, pathlib
        >>> from metamae.training.run_folder import SHARDS, newest_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("000001", "000002", "000003.partial"):
        ...         pathlib.Path(folder, SHARDS, name).mkdir(parents=True)
        ...     newest_shards(pathlib.Path(folder)).name
        '000002'
    """
    folder = run_dir / SHARDS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    complete = [name for name in names if name.isascii() and name.isdigit()]
    return folder / max(complete, key=int) if complete else None


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run can go on from what its folder holds, in one file or in shards."""
    return (run_dir / CHECKPOINT).is_file() or newest_shards(run_dir) is not None


def read_history(path: Path) -> dict[str, list[list[float]]]:
    """Logged series of a finished run.

    Raises:
        CheckpointError: a missing or damaged file.
    """
    path = as_path(path, "a history")
    try:
        series: dict[str, list[list[float]]] = read_json(path)
        check_series(series)
        series["loss"]
        return series
    except (OSError, ValueError, TypeError, KeyError) as fault:
        raise CheckpointError(
            f"expected the history of a run in {path}, which is missing or damaged "
            f"({reason_of(fault)}); delete its folder and run again"
        ) from fault


def read_config(run_dir: Path) -> Config:
    """The configuration that a run folder was started with.

    Raises:
        CheckpointError: a damaged file.
        OSError: there is none.
    """
    path = run_dir / CONFIG
    try:
        return Config.from_dict(parse_yaml(read_text(path)))
    except (ConfigError, ValueError, TypeError, RecursionError) as fault:
        raise CheckpointError(
            f"expected the configuration of a run in {path}, got a damaged file "
            f"({reason_of(fault)}); delete its folder and run again"
        ) from fault


MAY_CHANGE = re.compile(
    r"training\.(steps|prefetch|log_every|checkpoint_every|micro_batch|parallel)|probe\..*"
)
"""Settings that a run may be resumed with other values of."""


def _may_change(key: str, config: Config) -> bool:
    scheduled = config.training.schedule != "constant" or share_grows(config.masking)
    if key == "training.steps" and scheduled:
        return False
    return MAY_CHANGE.fullmatch(key) is not None


def check_same_run(earlier: Config, wanted: Config, run_dir: Path) -> None:
    """Raise ``CheckpointError`` unless a run may go on, or count, with the settings asked for.

    It may with more steps, other logging or another probe, and with nothing else changed. Where
    the learning rate, or the share of a mask that a rule chooses, depends on the number of steps,
    this may not change either.
    """
    old, new = _flatten(earlier.to_dict()), _flatten(wanted.to_dict())
    changed = [
        f"{key}: {old[key]} -> {new[key]}"
        for key in old
        if old[key] != new[key] and not _may_change(key, wanted)
    ]
    if changed:
        raise CheckpointError(
            f"expected the configuration that {run_dir} was started with, got changes in "
            f"{'; '.join(changed)}; use the same settings or another output folder, or delete "
            "this one to run it again"
        )


def check_same_data(earlier: str, wanted: str, name: str, run_dir: Path) -> None:
    """Raise ``CheckpointError`` unless a run was trained on the data that are there now.

    Args:
        earlier: Fingerprint that the run recorded; an empty one, of an earlier revision, passes.
        wanted: Fingerprint of the data at hand.
        name: Name of the data set.
        run_dir: Folder of the run.
    """
    if earlier and earlier != wanted:
        raise CheckpointError(
            f"expected the data {name!r} that {run_dir} was trained on (fingerprint {earlier}), "
            f"got others of that name ({wanted}); bring the earlier data back, use another output "
            "folder, or delete this one to run it again"
        )


def _flatten(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}  # type: ignore[arg-type]
    return flat


def read_record(
    run_dir: Path, trained: Checkpoint | None = None, *, data_dir: Path | None = None
) -> ModelRecord:
    """What a run folder says of its model and of the data it was trained on.

    Runs of earlier revisions remember nothing of their data; where the data set is known by name,
    it says.

    Args:
        run_dir: Folder of the run.
        trained: Its checkpoint; read where it is not at hand.
        data_dir: Folder of the full data sets, for an earlier run on one of them.

    Raises:
        CheckpointError: a damaged file, or none of a data set without a name.
        DataError: an earlier run on a full data set that is not there.
    """
    trained = trained or Checkpoint.load(run_dir / CHECKPOINT)
    path = run_dir / DATA
    known = None if path.exists() else _data_by_name(run_dir, trained.config, data_dir).to_dict()
    versions = {name: text for name, text in trained.provenance.items() if name != "optimiser"}
    try:
        values = read_json(path) if known is None else known
        return ModelRecord.from_dict(
            {
                **{"model_type": "metamae", "format": FORMAT, "config": trained.config.to_dict()},
                **{"data": values, "step": trained.step, "fingerprint": trained.data},
                "versions": versions,
            }
        )
    except (CheckpointError, ValueError) as fault:
        raise CheckpointError(
            f"expected what a run remembers of its data in {path}, got a damaged file "
            f"({reason_of(fault)}); delete its folder and run again"
        ) from fault


def _data_by_name(run_dir: Path, config: Config, data_dir: Path | None) -> Description:
    if config.dataset not in (*POCKET, *SOURCES):
        raise CheckpointError(
            f"expected {DATA} in {run_dir}, which says what its data look like, found none, and "
            f"{config.dataset!r} is no data set known by name; run metamae pretrain --resume on "
            "its data, which writes it"
        )
    return Description.of(
        load_dataset(config.dataset, data_dir=data_dir, token_size=config.token_size)
    )


def load_method(
    path: Path, inputs: Inputs | None = None, device: torch.device | str = "cpu"
) -> Method[Any]:
    """Rebuild a trained method from its run folder.

    Args:
        path: The checkpoint file.
        inputs: Input specifications of the data set it is to read; those that it was trained on
            where none are passed.
        device: Where to put it.

    Raises:
        CheckpointError: a missing or damaged file, or weights that do not fit the inputs.
    """
    checkpoint = Checkpoint.load(path, device)
    if inputs is None:
        inputs = read_record(Path(path).parent, checkpoint).description.inputs
    return rebuild(checkpoint.config, inputs, checkpoint.model, path).to(device)


def rebuild(config: Config, inputs: Inputs, state: dict[str, Any], path: Path) -> Method[Any]:
    """A method with trained weights, in eval mode, on the CPU.

    Args:
        config: Its configuration.
        inputs: Specifications of the inputs.
        state: Its weights.
        path: Where they are from, for the error.

    Raises:
        CheckpointError: weights that do not fit.
    """
    try:
        task = stored_task(state) if config.method == "supervised" else None
        method = build_method(config, inputs, task)
        method.load_state_dict(state)
    except (RuntimeError, KeyError, IndexError) as fault:
        reason = " ".join(str(fault).split())
        raise CheckpointError(
            f"expected weights for inputs {[spec.name for spec in inputs]} in {path}: {reason}"
        ) from fault
    return method.eval()
