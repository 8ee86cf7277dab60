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
