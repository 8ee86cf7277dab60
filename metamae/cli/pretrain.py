"""Commands on single runs: ``metamae pretrain`` and ``metamae probe``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metamae.cli.options import add_overrides, add_places
from metamae.cli.terminal import NOTHING_HINT, make_console
from metamae.config.schema import METHODS, PRESETS
from metamae.data import load_dataset
from metamae.data.pocket import POCKET
from metamae.errors import ConfigError
from metamae.experiments.plan import resolve
from metamae.locks import locked
from metamae.progress import Reporter
from metamae.stopping import Stopped, signal_of
from metamae.training.devices import choose_device
from metamae.training.pretraining import pretrain
from metamae.training.provenance import device_name
from metamae.training.run_folder import CHECKPOINT


def add_pretrain(commands: Any) -> None:
    """Add ``metamae pretrain``."""
    parser = commands.add_parser(
        "pretrain",
        help="pretrain one method on one data set",
        description="Pretrain one method on one data set; leaves configuration, checkpoint and "
        "history in the output folder.",
        epilog=f"embedded data sets: {', '.join(POCKET)}",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="data set name")
    add("--method", default="metamae", metavar="M", help=f"of: {', '.join(METHODS)}")
    add("--seed", type=int, default=0, help="seed of weights, order, masks and dropout")
    add("--preset", choices=PRESETS, default="pocket", help="model sizes and settings")
    add_overrides(parser)
    add("--out", type=Path, help="run folder (default: runs/DATASET/METHOD/seed-SEED)")
    add("--resume", action="store_true", help="continue from the checkpoint in the run folder")
    add_places(parser)
    parser.set_defaults(run=run_pretrain)


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``metamae pretrain``."""
    dataset = load_dataset(options.dataset, data_dir=options.data_dir)
    config = resolve(options.dataset, options.preset, options.method, options.seed, options.set)
    if config.token_size:
        dataset = load_dataset(
            options.dataset, data_dir=options.data_dir, token_size=config.token_size
        )
    folder = options.out or Path("runs") / config.dataset / config.method / f"seed-{config.seed}"
    device = choose_device(options.device)
    reporter = Reporter(make_console())
    with locked(folder):
        if (folder / CHECKPOINT).exists() and not options.resume:
            raise ConfigError(
                f"expected an empty run folder, {folder} holds a checkpoint; add --resume to "
                "continue it, or choose another --out"
            )
        reporter.say(f"{folder} on {device_name(device)}")
        try:
            done = pretrain(
                config, dataset, folder, device=device, resume=options.resume, reporter=reporter
            )
        except KeyboardInterrupt as stop:
            if (folder / CHECKPOINT).exists():
                raise
            raise Stopped(signal_of(stop), hint=NOTHING_HINT) from None
    reporter.say(f"{done.steps} steps in {done.seconds:.1f} s; next: metamae probe {folder}")
    return 0
