"""What has to fit between a checkpoint and the run that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn import MetalearnError
from metamae.errors import CheckpointError
from metamae.training.checkpoint import Checkpoint
from metamae.training.run_folder import CHECKPOINT, SHARDS, STATE, newest_shards


def newest(run_dir: Path) -> Path:
    """What a run goes on from: its checkpoint in one file, or the newest one in shards.

    There are both where the file is an export of the shards, which has no moments, and where a
    process was killed before it removed the older of the two.
    """
    file, shards = run_dir / CHECKPOINT, newest_shards(run_dir)
    if shards is None:
        return file
    if not file.is_file():
        return shards
    steps = Checkpoint.load(file).step, Checkpoint.load(shards / STATE).step
    return file if steps[0] > steps[1] else shards


def read_newest(run_dir: Path, device: torch.device | str) -> Checkpoint:
    """The checkpoint of :func:`newest`, whole.

    Raises:
        CheckpointError: a damaged one, or an export whose shards are gone.
    """
    path = newest(run_dir)
    if path.is_dir():
        from metamae.training.shards import read_whole  # of a torch with torch.distributed

        return read_whole(path, device)
    checkpoint = Checkpoint.load(path, device)
    if not checkpoint.optimiser and checkpoint.step:
        raise CheckpointError(
            f"expected a checkpoint to go on from in {run_dir}, got weights alone, whose moments "
            f"were in {SHARDS}, which is gone; bring it back, or use another output folder"
        )
    return checkpoint


@contextmanager
def named_mismatch(path: Path) -> Iterator[None]:
    """Turn what loading a state of another model or optimiser raises into one line."""
    try:
        yield
    except CheckpointError as fault:
        raise CheckpointError(_explain(path, str(fault))) from fault
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, MetalearnError) as fault:
        name = type(fault).__name__
        reason = f"{name}: {' '.join(str(fault).split())}"
        raise CheckpointError(_explain(path, reason[:300])) from fault


def _explain(path: Path, reason: str) -> str:
    return (
        f"expected {path} to hold the model and the optimiser of this run, got others ({reason}); "
        "resume with the code and settings that wrote it, or use another output folder"
    )


def check_same_optimiser(optimiser: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Refuse another kind of optimiser, or one with other numbers, which torch would take over.

    The learning rate is a function of the step, and is set anew in every one. A state of several
    levels has groups of its own; files of earlier revisions name no kind.

    Raises:
        CheckpointError: naming what differs.
    """
    earlier, now = checkpoint.provenance.get("optimiser"), type(optimiser).__name__
    if earlier is not None and earlier != now:
        raise CheckpointError(f"optimiser: {earlier} -> {now}")
    groups: Any = checkpoint.optimiser.get("param_groups", [])
    for old, new in zip(groups, optimiser.param_groups, strict=False):
        for name in sorted((old.keys() & new.keys()) - {"params", "fused", "foreach", "lr"}):
            if not isinstance(old[name], Tensor) and _plain(old[name]) != _plain(new[name]):
                raise CheckpointError(f"optimiser.{name}: {old[name]} -> {new[name]}")


def check_state_shapes(optimiser: torch.optim.Optimizer) -> None:
    """Refuse a state whose moments have not the shape of their parameters: torch does not look.

    Raises:
        CheckpointError: naming the shapes.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for name, value in optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{name} of shape {tuple(value.shape)} for weights of "
                        f"{tuple(parameter.shape)}"
                    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
