"""Compare random initialisation, MAE and MetaMAE on real data, from one command.

Each method pretrains the same encoder for the same steps on the same batches; then a linear probe
is fitted on its frozen features. Without flags this takes the embedded smartwatch recordings and
a few minutes on two CPU cores.

    python examples/metamae_dabs.py
    python examples/metamae_dabs.py --dataset digits --steps 2000 --seeds 5
    python examples/metamae_dabs.py --dataset all --out runs/all
    python examples/metamae_dabs.py --out runs/all --dataset all --resume
    python examples/metamae_dabs.py --learn step_size,contrast_weight,nearby_ratio,mask_ratio

The output folder receives results.json (one row per data set, method and seed), times.json
(milliseconds a step, method beside method, measured before the runs), curves.png,
reconstructions.png, and per run a folder with the resolved configuration, the checkpoint and the
logged history. With --learn also settings.png, the learned settings over time; the learned values
are in learned.json in MetaMAE's run folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from metalearn.multilevel import import_betty
from metamae import ConfigError, load_dataset
from metamae.cli.terminal import guarded, make_console
from metamae.config import COMPARED, LEARNABLE, METHODS, PRESETS
from metamae.data import POCKET
from metamae.experiments.demo import Demo
from metamae.experiments.plan import Source, Sweep
from metamae.experiments.sweep import RESULTS
from metamae.experiments.workers import limited_threads
from metamae.progress import Reporter
from metamae.report import summarise
from metamae.training.allocator import keep_freed_memory
from metamae.training.devices import choose_device
from metamae.training.provenance import device_name

STEPS = 1000
"""Steps that show something in five minutes."""


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
        "--methods",
        nargs="+",
        default=list(COMPARED),
        metavar="M",
        help=f"of: {', '.join(METHODS)} (default: {', '.join(COMPARED)})",
    )
    add(
        "--steps",
        type=int,
        help=f"pretraining steps (default: {STEPS}; of other presets their own)",
    )
    add("--seeds", type=int, help="number of seeds (default: up to 3, as fit about 4 minutes)")
    add("--workers", type=int, help="runs at once (default: as many as cores; 1 on a GPU)")
    add("--threads", type=int, default=1, help="threads of each run on a CPU (default: 1)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--out", type=Path, help="output folder (default: a new one below runs/)")
    add("--preset", choices=PRESETS, default="pocket", help="model sizes and settings")
    add("--data-dir", type=Path, help="folder with full DABS data (not needed for embedded sets)")
    add("--compile", action="store_true", help="compile the training step: minutes, then faster")
    add("--resume", action="store_true", help="continue in --out, or in the latest folder")
    add(
        "--learn",
        metavar="NAME,NAME",
        help="settings that MetaMAE learns on held-out unlabelled data instead of taking them from "
        f"the preset (needs Betty), of: {', '.join(LEARNABLE)}",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, e.g. --set adaptation.steps=5 (repeatable)",
    )
    return parser.parse_args(arguments)


def make_sweep(options: argparse.Namespace) -> Sweep:
    """What to run, from the flags."""
    overrides = list(options.set)
    steps = STEPS if options.steps is None and options.preset == "pocket" else options.steps
    if steps is not None:
        overrides.append(f"training.steps={steps}")
    if options.learn is not None:
        overrides.append(f"learn.settings=[{options.learn}]")
        import_betty()  # now, not after the other methods were trained
    if options.compile:
        overrides.append("training.compile=on")
    names = POCKET if options.dataset == "all" else (options.dataset,)
    for name in names:
        if name not in POCKET:
            load_dataset(name, data_dir=options.data_dir)  # explains what is known and what is not
    return Sweep(
        datasets={name: Source() for name in names},
        methods=tuple(options.methods),
        protocols=("published",),
        overrides=tuple(overrides),
        preset=options.preset,
    )


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


def compare(options: argparse.Namespace) -> int:
    """Run the comparison and print its table."""
    console = make_console()
    demo = Demo(
        sweep=make_sweep(options),
        out=choose_folder(options),
        device=choose_device(options.device),
        data_dir=options.data_dir,
        seeds=options.seeds,
        workers=options.workers,
        threads=options.threads,
    )
    reporter = Reporter(console)
    with limited_threads(demo.threads, demo.device):
        reporter.say(f"{demo.out} on {device_name(demo.device)}")
    summarise(*demo.run(reporter)).print(console)
    reporter.say(f"results and pictures: {demo.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    keep_freed_memory()
    options = parse_arguments(arguments)
    return guarded(lambda: compare(options))


if __name__ == "__main__":
    raise SystemExit(main())
