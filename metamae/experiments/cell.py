"""One cell of a sweep: pretrain, compute features once, evaluate under every protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch

from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.fingerprint import fingerprint
from metamae.errors import CheckpointError
from metamae.evaluation.feature_cache import Pooling, run_features
from metamae.evaluation.features import Features
from metamae.evaluation.protocols import describe_protocol, reads
from metamae.experiments.evaluate_run import probe_row
from metamae.experiments.plan import Cell
from metamae.inputs import check_transfer
from metamae.locks import locked
from metamae.progress import Reporter
from metamae.report.rows import UNKNOWN, Key, Result
from metamae.training.checkpoint import Checkpoint
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import (
    CHECKPOINT,
    check_same_data,
    check_same_run,
    read_config,
)

Load = Callable[[str, tuple[int, ...]], Dataset]
"""Loads a data set by name and token size."""


def run_cell(
    cell: Cell,
    run_dir: Path,
    load: Load,
    *,
    device: torch.device,
    wanted: Collection[Key],
    reporter: Reporter | None = None,
) -> list[Result]:
    """Rows of a cell that are wanted; pretraining goes on from its last checkpoint.

    Everything is computed from the checkpoint file, never from the method still in memory, so that
    a row made now and one made later from the same file are equal.

    Args:
        cell: The cell.
        run_dir: Its folder.
        load: Loads a data set.
        device: Where to train and compute features.
        wanted: Keys of the rows to make.
        reporter: Shows progress; silent by default.

    Raises:
        LockedError: another process is at work on the folder.
    """
    with locked(run_dir, wait=WAIT):
        return _run_cell(cell, run_dir, load, device, wanted, reporter)


WAIT = 5.0
"""Seconds to wait for a folder: workers of a sweep that was killed end a second after it."""


def _run_cell(
    cell: Cell,
    run_dir: Path,
    load: Load,
    device: torch.device,
    wanted: Collection[Key],
    reporter: Reporter | None,
) -> list[Result]:
    config, reporter = cell.config, reporter or Reporter(None)
    source = load(config.dataset, config.token_size)
    targets = [name for name in cell.targets if any(key.transfer == name for key in wanted)]
    loaded = {
        name: source if name == config.dataset else load(name, config.token_size)
        for name in targets
    }
    for name, dataset in loaded.items():
        dataset.need_task()
        check_transfer(source.inputs, dataset.inputs, names=(source.name, name))
    if not is_finished(config, run_dir, fingerprint(source)):
        pretrain(config, source, run_dir, device=device, resume=True, reporter=reporter)
    trained = Checkpoint.load(run_dir / CHECKPOINT)
    rows = []
    for name, dataset in loaded.items():
        features: dict[Pooling, Features] = {}
        data = fingerprint(dataset)
        for protocol in cell.protocols:
            if cell.key(name, protocol) in wanted:
                kind = reads(protocol)
                if kind not in features:
                    features[kind] = run_features(run_dir, dataset, device=device, pooling=kind)
                rows.append(
                    probe_row(
                        trained,
                        features[kind],
                        protocol,
                        transfer=name,
                        variant=cell.variant,
                        device=device,
                        probe=config.probe,
                        data=data,
                        reporter=reporter,
                    )
                )
    return rows


def is_finished(config: Config, run_dir: Path, data: str) -> bool:
    """Whether the folder holds the finished pretraining of this configuration on these data.

    Raises:
        CheckpointError: it holds another configuration's or other data's, or a damaged checkpoint.
    """
    if not (run_dir / CHECKPOINT).is_file():
        return False
    checkpoint = Checkpoint.load(run_dir / CHECKPOINT)
    check_same_run(checkpoint.config, config, run_dir)
    check_same_data(checkpoint.data, data, config.dataset, run_dir)
    return checkpoint.step == config.training.steps


def is_current(row: Result, cell: Cell, run_dir: Path, data: Callable[[str], str]) -> bool:
    """Whether a finished row was made as it is asked for, and its run is still there.

    Probed on other data than there are now it is not. Rows of earlier revisions know no data, and
    count.

    Args:
        row: The row.
        cell: What is asked for.
        run_dir: Folder of the run.
        data: Fingerprint of a data set by name; empty if it cannot be had.

    Raises:
        CheckpointError: the run was made with other settings, for another number of steps, or on
            other data.
    """
    try:
        earlier = read_config(run_dir)
    except OSError:
        return False  # its folder was deleted, as errors advise: run it again
    check_same_run(earlier, cell.config, run_dir)
    if row.steps != cell.config.training.steps:
        raise CheckpointError(
            f"expected {run_dir} to hold a run of {cell.config.training.steps} steps, its result "
            f"was made after {row.steps}; choose another output folder, or delete this one to run "
            "it again"
        )
    pretrained, _, probed = row.data.partition("/")
    if row.data and (now := data(row.dataset)):
        check_same_data(pretrained.replace(UNKNOWN, ""), now, row.dataset, run_dir)
    same = not row.data or (data(row.transfer) or probed) == probed
    return same and row.settings == describe_protocol(row.protocol, cell.config.probe)
