"""Commands on single runs: ``metamae pretrain`` and ``metamae probe``."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from metamae.cli.options import (
    add_data_options,
    add_minutes,
    add_overrides,
    add_places,
    open_named,
    repeat_options,
)
from metamae.cli.terminal import NOTHING_HINT, make_console
from metamae.config.names import METHODS, check_method
from metamae.config.schema import PRESETS, Config
from metamae.data import Dataset
from metamae.data.own import is_path
from metamae.data.pocket import POCKET
from metamae.errors import ConfigError
from metamae.experiments.plan import resolve
from metamae.locks import locked
from metamae.progress import Reporter
from metamae.stopping import Stopped, signal_of
from metamae.training.auto import auto_config
from metamae.training.devices import choose_device
from metamae.training.loggers import LOGGERS, make_loggers
from metamae.training.pretraining import pretrain
from metamae.training.provenance import device_name
from metamae.training.ranks import Ranks, joined
from metamae.training.run_folder import has_checkpoint, read_config


def add_pretrain(commands: Any) -> None:
    """Add ``metamae pretrain``."""
    parser = commands.add_parser(
        "pretrain",
        help="pretrain one method on one data set",
        description="Pretrain one method on a data set, or on your own data by path; leaves a "
        "complete run in the output folder. As torchrun --nproc-per-node N -m metamae pretrain ... "
        "N processes train one model together.",
        epilog=f"embedded data sets: {', '.join(POCKET)}; your own data: .csv, .tsv, .parquet, "
        ".npy, .npz, or a folder of pictures or sounds",
    )
    add = parser.add_argument
    add("dataset", metavar="DATA", help="data set name, or a path to your own data")
    add("--method", default="metamae", metavar="M", help=f"of: {', '.join(METHODS)}")
    add("--seed", type=int, default=0, help="seed of weights, order, masks and dropout")
    add(
        "--preset",
        choices=(*PRESETS, "auto"),
        help="model sizes and settings (default: pocket; auto for a path)",
    )
    add_minutes(parser)
    add_overrides(parser)
    add("--out", type=Path, help="run folder (default: runs/DATASET/METHOD/seed-SEED)")
    add(
        "--log",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help=f"log to {', '.join(LOGGERS)} too (log.jsonl is always written)",
    )
    add("--resume", action="store_true", help="continue from the checkpoint in the run folder")
    add_places(parser)
    add_data_options(parser)
    parser.set_defaults(run=run_pretrain, together=True)


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``metamae pretrain``, in one process or as one of those that ``torchrun`` started."""
    with joined(options.device) as (ranks, device):
        return _pretrain(options, ranks, choose_device(device))


def _pretrain(options: argparse.Namespace, ranks: Ranks, device: torch.device) -> int:
    reporter = Reporter(make_console() if ranks.leads else None)
    dataset = open_named(options, say=reporter.say)
    name = dataset.name
    folder = options.out or Path("runs") / name / options.method / f"seed-{options.seed}"
    names = [name for text in options.log for name in text.split(",") if name]
    loggers = make_loggers(names, folder) if ranks.leads else []
    with locked(folder) if ranks.leads else nullcontext():
        config = ranks.from_first(lambda: _config_of(options, dataset, folder, device, reporter))
        if config.token_size:
            dataset = open_named(options, token_size=config.token_size)
        together = f", {ranks.size} processes" if ranks.size > 1 else ""
        reporter.say(f"{folder} on {device_name(device)}{together}")
        try:
            done = pretrain(
                config,
                dataset,
                folder,
                device=device,
                resume=options.resume,
                reporter=reporter,
                callbacks=loggers,
                ranks=ranks,
            )
        except KeyboardInterrupt as stop:
            if has_checkpoint(folder):
                raise
            raise Stopped(signal_of(stop), hint=NOTHING_HINT) from None
    again = repeat_options(options) if is_path(options.dataset) else ""
    data = shlex.quote(options.dataset)
    embed = f"metamae embed {folder} {data} --out z.csv"
    then = f"metamae probe {folder}{again}" if dataset.task else embed
    reporter.say(f"{done.steps} steps in {done.seconds:.1f} s; next: {then}")
    return 0


def _config_of(
    options: argparse.Namespace, dataset: Dataset, folder: Path, device: Any, reporter: Reporter
) -> Config:
    """The configuration, of a folder that may be written to."""
    if has_checkpoint(folder) and not options.resume:
        raise ConfigError(
            f"expected an empty run folder, {folder} holds a checkpoint; add --resume to "
            "continue it, or choose another --out"
        )
    config = choose_config(options, dataset, folder, device, reporter)
    if config.token_size and dataset.recipe:
        raise ConfigError(
            f"expected --token-size for own data, got token_size={list(config.token_size)} by --set"
        )
    return config


def choose_config(
    options: argparse.Namespace, dataset: Dataset, folder: Path, device: Any, reporter: Reporter
) -> Config:
    """The configuration that preset, options and, where it is resumed, the run itself make."""
    preset = options.preset or ("auto" if dataset.recipe else "pocket")
    if preset != "auto":
        if options.minutes is not None:
            raise ConfigError(f"expected --minutes with --preset auto, got the preset {preset}")
        if dataset.recipe:
            raise ConfigError(
                f"expected --preset auto, which fits own data, got {preset}: it is for data sets "
                "by name"
            )
        return resolve(options.dataset, preset, options.method, options.seed, options.set)
    check_method(options.method)
    steps = None
    if options.resume and has_checkpoint(folder) and options.minutes is None:
        steps = read_config(folder).training.steps  # as it was timed at first
    config = auto_config(
        dataset,
        method=options.method,
        seed=options.seed,
        minutes=options.minutes,
        steps=steps,
        overrides=options.set,
        device=device,
    )
    encoder, training = config.encoder, config.training
    reporter.say(
        f"preset auto: {training.steps} steps of {training.batch_size} rows, encoder of width "
        f"{encoder.width} and depth {encoder.depth} (--minutes, or --set training.steps=N)"
    )
    return config
