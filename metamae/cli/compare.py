"""``metamae compare``: does pretraining save labels on my data?"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from metamae.cli.options import add_data_options, add_overrides, add_places, open_named
from metamae.cli.terminal import make_console
from metamae.data.own import is_path
from metamae.errors import DataError
from metamae.evaluation.candidates import CANDIDATES
from metamae.experiments.compare import Compare
from metamae.experiments.compare_record import PAGE
from metamae.experiments.workers import limited_threads
from metamae.progress import Reporter
from metamae.training.devices import choose_device
from metamae.training.provenance import device_name

INTERRUPTED = "stopped; the same command continues the comparison"


def add_compare(commands: Any) -> None:
    """Add ``metamae compare``."""
    parser = commands.add_parser(
        "compare",
        help="find out whether pretraining saves labels on your data",
        description="Pretrain MAE and MetaMAE, and draw accuracy against numbers of labels beside "
        "models on raw inputs, features made by hand, an untrained encoder, and the same network "
        "trained from scratch. Ends in one sentence; leaves a figure, tables and an HTML page.",
        epilog=f"candidates: {', '.join(CANDIDATES)}",
    )
    add = parser.add_argument
    add("dataset", metavar="DATA", help="path to your data, or the name of a data set")
    add("--out", type=Path, help="output folder (default: runs/compare-NAME)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of each pretraining run (default: 5)")
    budget.add_argument("--steps", type=int, help="of each pretraining run, instead of minutes")
    add("--seeds", type=int, default=2, help="seeds of pretraining (default: 2)")
    add("--draws", type=int, default=20, help="draws of labels (default: 20)")
    add("--only", nargs="+", default=[], metavar="C", help="candidates, among those named below")
    add("--workers", type=int, help="runs at once (default: as many as cores; 1 on a GPU)")
    add("--threads", type=int, default=1, help="threads of each run on a CPU (default: 1)")
    add_overrides(parser)
    add_data_options(parser)
    add_places(parser)
    parser.set_defaults(run=run_compare, interrupted=INTERRUPTED)


def run_compare(options: argparse.Namespace) -> int:
    """Run ``metamae compare``."""
    reporter, name = Reporter(make_console()), options.dataset
    stem = Path(name).resolve().stem if is_path(name) else name
    kept = {k: v for k, v in vars(options).items() if k not in ("run", "interrupted")}
    asked = argparse.Namespace(**kept)
    device = choose_device(options.device)
    compare = Compare(
        load=partial(open_named, asked),
        out=options.out or Path("runs") / f"compare-{stem}",
        device=device,
        candidates=tuple(options.only),
        seeds=options.seeds,
        draws=options.draws,
        minutes=options.minutes,
        steps=options.steps,
        overrides=tuple(options.set),
        workers=options.workers,
        threads=options.threads,
    )
    dataset = open_named(asked, say=reporter.say)  # what was guessed is said first
    if dataset.task is None and dataset.recipe:
        raise DataError(f"expected a label to compare by for {name}, got none; add --label NAME")
    dataset.need_task()
    with limited_threads(options.threads, device):
        reporter.say(f"{compare.out} on {device_name(device)}")
    comparison = compare.run(reporter, dataset)
    for section in comparison.brief:
        section.print(make_console())
    reporter.say(f"\n{comparison.sentence}\n")
    for line in comparison.cautions:
        reporter.say(f"caution: {line}\n")
    reporter.say(f"{compare.out / PAGE}")
    return 0
