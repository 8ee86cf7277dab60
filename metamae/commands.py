"""Commands on single runs: ``metamae pretrain`` and ``metamae probe``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metamae.cell import probe_row
from metamae.checkpoint import Checkpoint
from metamae.config import METHODS, PRESETS, override
from metamae.data import POCKET, load_dataset
from metamae.devices import choose_device
from metamae.errors import ConfigError
from metamae.evaluation import PROTOCOLS, labels_of
from metamae.progress import Reporter
from metamae.provenance import device_name
from metamae.report import mean_and_spread
from metamae.results import DEFAULT, Result, read_results, write_results
from metamae.run_folder import CHECKPOINT
from metamae.sweep import resolve
from metamae.terminal import make_console
from metamae.training import pretrain
from metamae.transfer import check_transfer, run_features

PROBES = "probes.json"


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


def add_probe(commands: Any) -> None:
    """Add ``metamae probe``."""
    parser = commands.add_parser(
        "probe",
        help="evaluate a pretrained encoder",
        description="Evaluate the frozen encoder of a run folder; rows are added to probes.json "
        "in it, and features are kept beside the checkpoint.",
        epilog=f"protocols: {', '.join(PROTOCOLS)}, and few-N for any N",
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="folder of metamae pretrain, or of a sweep")
    add("--on", metavar="DATASET", help="data set to probe on (default: the pretraining one)")
    add(
        "--protocol",
        nargs="+",
        default=["published"],
        metavar="P",
        help="evaluation protocols, or all (default: published)",
    )
    add("--seeds", type=int, default=1, help="probe seeds, counted from the run's own (default: 1)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the published probe, e.g. --set probe.epochs=50 (repeatable)",
    )
    add_places(parser)
    parser.set_defaults(run=run_probe)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set adaptation.steps=5 (repeatable)",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--data-dir``."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--data-dir", type=Path, help="folder with full DABS data (not needed for embedded sets)")


def run_pretrain(options: argparse.Namespace) -> int:
    """Run ``metamae pretrain``."""
    dataset = load_dataset(options.dataset, data_dir=options.data_dir)
    config = resolve(options.dataset, options.preset, options.method, options.seed, options.set)
    if config.token_size:
        dataset = load_dataset(
            options.dataset, data_dir=options.data_dir, token_size=config.token_size
        )
    folder = options.out or Path("runs") / config.dataset / config.method / f"seed-{config.seed}"
    if (folder / CHECKPOINT).exists() and not options.resume:
        raise ConfigError(
            f"expected an empty run folder, {folder} holds a checkpoint; add --resume to continue "
            "it, or choose another --out"
        )
    device = choose_device(options.device)
    reporter = Reporter(make_console())
    reporter.say(f"{folder} on {device_name(device)}")
    done = pretrain(
        config, dataset, folder, device=device, resume=options.resume, reporter=reporter
    )
    reporter.say(f"{done.steps} steps in {done.seconds:.1f} s; next: metamae probe {folder}")
    return 0


def run_probe(options: argparse.Namespace) -> int:
    """Run ``metamae probe``."""
    protocols = list(PROTOCOLS) if options.protocol == ["all"] else options.protocol
    for protocol in protocols:
        labels_of(protocol)
    for setting in options.set:
        if not setting.startswith("probe."):
            raise ConfigError(
                f"expected settings of the probe, such as probe.epochs=50, got {setting}"
            )
    if options.seeds < 1:
        raise ConfigError(f"expected at least 1 seed, got {options.seeds}")
    trained = Checkpoint.load(options.run_dir / CHECKPOINT)
    config = trained.config
    changed = override(config, options.set)
    name = options.on or config.dataset
    dataset = load_dataset(name, data_dir=options.data_dir, token_size=config.token_size)
    dataset.need_task()
    if name != config.dataset:
        source = load_dataset(
            config.dataset, data_dir=options.data_dir, token_size=config.token_size
        )
        check_transfer(source.inputs, dataset.inputs, names=(source.name, name))
    device = choose_device(options.device)
    reporter = Reporter(make_console())
    features = run_features(options.run_dir, dataset, device=device)
    path = options.run_dir / PROBES
    rows = {row.key: row for row in read_results(path)}
    for protocol in protocols:
        made = [
            probe_row(
                trained,
                features,
                protocol,
                transfer=name,
                variant=DEFAULT,
                device=device,
                probe=changed.probe,
                probe_seed=config.seed + number,
                reporter=reporter,
            )
            for number in range(options.seeds)
        ]
        rows |= {row.key: row for row in made}
        write_results(path, rows.values())
        reporter.say(describe(made))
    return 0


def describe(rows: list[Result]) -> str:
    """One line on the results of a protocol, over probe seeds.

    A single result of several draws shows their spread.
    """
    first, values = rows[0], [row.value for row in rows]
    if len(rows) == 1 and first.draws > 1:
        shown = f"{100 * first.value:.1f} ± {100 * first.spread:.1f} over {first.draws} draws"
    else:
        shown = mean_and_spread(values)
    where = (
        first.transfer
        if first.transfer == first.dataset
        else (f"{first.dataset} -> {first.transfer}")
    )
    metric = first.metric.replace("_", " ")
    return f"{where}, {first.method}, {first.protocol} ({first.settings}): {metric} {shown}"
