"""One cell of a sweep: pretrain, compute features once, evaluate under every protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from metamae.checkpoint import Checkpoint
from metamae.config import Config, ProbeConfig
from metamae.data.dataset import Dataset
from metamae.errors import CheckpointError
from metamae.evaluation import describe_protocol, evaluate
from metamae.features import Features
from metamae.progress import Reporter
from metamae.provenance import device_name, revision
from metamae.results import Key, Result
from metamae.run_folder import CHECKPOINT, CONFIG
from metamae.sweep import Cell
from metamae.training import pretrain
from metamae.transfer import check_transfer, run_features

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
    """
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
    if not is_finished(config, run_dir):
        pretrain(config, source, run_dir, device=device, resume=True, reporter=reporter)
    trained = Checkpoint.load(run_dir / CHECKPOINT)
    rows = []
    for name, dataset in loaded.items():
        features = run_features(run_dir, dataset, device=device)
        for protocol in cell.protocols:
            if cell.key(name, protocol) in wanted:
                rows.append(
                    probe_row(
                        trained,
                        features,
                        protocol,
                        transfer=name,
                        variant=cell.variant,
                        device=device,
                        probe=config.probe,
                        reporter=reporter,
                    )
                )
    return rows


def probe_row(
    trained: Checkpoint,
    features: Features,
    protocol: str,
    *,
    transfer: str,
    variant: str,
    device: torch.device,
    probe: ProbeConfig,
    probe_seed: int | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Evaluate features of a checkpoint under one protocol; the result as a row."""
    config = trained.config
    seed = config.seed if probe_seed is None else probe_seed
    start = time.perf_counter()
    title = f"{transfer} {config.method} #{config.seed}: {protocol}"
    found = evaluate(protocol, features, probe, seed=seed, reporter=reporter, title=title)
    return Result(
        dataset=config.dataset,
        transfer=transfer,
        method=config.method,
        variant=variant,
        seed=config.seed,
        probe_seed=seed,
        protocol=protocol,
        settings=found.settings,
        metric=found.metric,
        value=found.value,
        spread=found.spread,
        draws=found.draws,
        train_value=found.train_value,
        extra=found.extra,
        preset=config.preset,
        steps=trained.step,
        batch_size=config.training.batch_size,
        pretrain_seconds=round(trained.seconds, 3),
        probe_seconds=round(time.perf_counter() - start, 3),
        device=device.type,
        hardware=device_name(device),
        torch=str(torch.__version__),
        revision=revision(),
    )


def is_finished(config: Config, run_dir: Path) -> bool:
    """Whether the folder holds the finished pretraining of this configuration.

    Raises:
        CheckpointError: it holds another configuration's, or a damaged checkpoint.
    """
    if not (run_dir / CHECKPOINT).is_file():
        return False
    found = Checkpoint.load(run_dir / CHECKPOINT)
    check_same(found.config, config, run_dir)
    return found.step == config.training.steps


def check_same(found: Config, asked: Config, run_dir: Path) -> None:
    """Raise ``CheckpointError`` unless two configurations pretrain alike."""
    if replace(found, probe=asked.probe) != asked:
        raise CheckpointError(
            f"expected {run_dir} to hold a run with these settings, it was made with others; "
            "choose another output folder, or delete this one to run it again"
        )


def is_current(row: Result, cell: Cell, run_dir: Path) -> bool:
    """Whether a finished row was made with the settings asked for, and its run is still there.

    Raises:
        CheckpointError: the run was made with other settings.
    """
    try:
        found = Config.from_dict(yaml.safe_load((run_dir / CONFIG).read_text()))
    except OSError:
        return False  # its folder was deleted, as errors advise: run it again
    check_same(found, cell.config, run_dir)
    return row.settings == describe_protocol(row.protocol, cell.config.probe)
