"""Compare random initialisation, MAE and MetaMAE on real data, from one command.

Each method pretrains the same encoder for the same steps on the same batches; then a linear probe
is fitted on its frozen features. Without flags this takes the embedded smartwatch recordings and
a few minutes on two CPU cores.

    python examples/metamae_dabs.py
    python examples/metamae_dabs.py --dataset digits --steps 2000 --seeds 5
    python examples/metamae_dabs.py --dataset all --out runs/all
    python examples/metamae_dabs.py --out runs/all --dataset all --resume

The output folder receives results.json (one row per data set, method and seed), curves.png,
reconstructions.png, and per run a folder with the resolved configuration, the checkpoint and the
logged history.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

# Threads that wait must sleep, not spin: beside another busy process that is twenty times faster.
# It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console

from metalearn import MetalearnError
from metamae import ConfigError, MetamaeError, load_dataset, make_config
from metamae.config import METHODS, Config
from metamae.data import POCKET, stands_for
from metamae.experiment import RESULTS, Experiment
from metamae.progress import Reporter
from metamae.provenance import device_name
from metamae.report import summarise


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    summary, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=details + f"\nembedded data sets: {', '.join(POCKET)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="sensors", metavar="NAME|all", help="data set (default: sensors)")
    add(
        "--methods", nargs="+", default=list(METHODS), metavar="M", help=f"of: {', '.join(METHODS)}"
    )
    add("--steps", type=int, help="pretraining steps (default: the preset's)")
    add("--seeds", type=int, help="number of seeds (default: up to 3, as fit about 4 minutes)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--out", type=Path, help="output folder (default: a new one below runs/)")
    add("--preset", choices=("pocket", "paper"), default="pocket", help="model sizes and settings")
    add("--data-dir", type=Path, help="folder with full DABS data (not needed for embedded sets)")
    add("--compile", action="store_true", help="compile the training step: minutes, then faster")
    add("--resume", action="store_true", help="continue in --out, or in the latest folder")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set adaptation.steps=5 (repeatable)",
    )
    return parser.parse_args(arguments)


def resolve_configs(options: argparse.Namespace) -> dict[str, Config]:
    """One configuration per data set, from its preset and the flags."""
    overrides = list(options.set)
    if options.steps is not None:
        overrides.append(f"training.steps={options.steps}")
    if options.compile:
        overrides.append("training.compile=on")
    for override in overrides:
        if override.partition("=")[0] in ("dataset", "method", "preset", "seed"):
            raise ConfigError(f"expected a flag of its own instead of --set {override}; see --help")
    names = POCKET if options.dataset == "all" else (options.dataset,)
    configs = {}
    for name in names:
        load_name = name
        if name not in POCKET:
            load_dataset(name, data_dir=options.data_dir)  # explains what is known and what is not
        elif options.preset == "paper":
            load_name = stands_for(name)
        configs[name] = make_config(
            name, preset=options.preset, preset_name=load_name, overrides=overrides
        )
    return configs


def choose_device(name: str) -> torch.device:
    """The device to train on."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise ConfigError(f"expected a device such as cpu or cuda, got {name!r}") from fault
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"expected a device such as cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device, found none; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"expected one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


def choose_folder(options: argparse.Namespace) -> Path:
    """The output folder: never one with other results in it, unless it is to be resumed."""
    stem = f"{options.dataset}-{options.preset}"
    if options.out is not None:
        if not options.resume and (options.out / RESULTS).exists():
            raise ConfigError(
                f"expected an empty output folder, {options.out} holds results; "
                "add --resume to continue them, or choose another --out"
            )
        return Path(options.out)
    taken = sorted(
        (int(path.name.removeprefix(stem + "-")), path)
        for path in Path("runs").glob(f"{stem}-*")
        if path.name.removeprefix(stem + "-").isdigit()
    )
    if options.resume and taken:
        return taken[-1][1]
    return Path("runs") / f"{stem}-{taken[-1][0] + 1 if taken else 1}"


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    options = parse_arguments(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII log must not cost the table
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        experiment = Experiment(
            config=resolve_configs(options),
            load=lambda config: load_dataset(
                config.dataset, data_dir=options.data_dir, token_size=config.token_size
            ),
            methods=options.methods,
            seeds=options.seeds,
            device=choose_device(options.device),
            out=choose_folder(options),
            resume=options.resume,
        )
        reporter = Reporter(console)
        reporter.say(f"{experiment.out} on {device_name(experiment.device)}")
        rows = experiment.run(reporter)
    except (MetamaeError, MetalearnError, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as fault:
        reason = str(fault).splitlines()[0]
        print(f"error: {reason} Lower training.batch_size, or use --device cpu", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; add --resume to continue from the last checkpoint", file=sys.stderr)
        return 130
    console.print(summarise(rows))
    reporter.say(f"results and pictures: {experiment.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
