"""The ``metamae`` command: one module for each of its commands."""

from __future__ import annotations

import argparse

from metamae.cli import data as data_commands
from metamae.cli.compare import add_compare
from metamae.cli.completion import add_completion
from metamae.cli.encoders import add_encoder_commands
from metamae.cli.listing import add_list
from metamae.cli.options import OneLineParser
from metamae.cli.pretrain import add_pretrain
from metamae.cli.probe import add_probe
from metamae.cli.report import add_report
from metamae.cli.sweep import add_sweep
from metamae.cli.terminal import RESUME_HINT, guarded, make_console
from metamae.errors import ConfigError
from metamae.training.allocator import keep_freed_memory
from metamae.training.ranks import launched
from metamae.version import __version__


def make_parser() -> argparse.ArgumentParser:
    """The parser; every command sets ``run``, a function of the parsed options."""
    parser = OneLineParser(
        prog="metamae", description="Self-supervised learning for any modality: MetaMAE and DABS."
    )
    parser.add_argument("--version", action="version", version=f"metamae {__version__}")
    add_completion(parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_pretrain(commands)
    add_probe(commands)
    add_encoder_commands(commands)
    add_compare(commands)
    add_sweep(commands)
    add_report(commands)
    add_list(commands)
    data_commands.add_parser(commands).set_defaults(
        run=lambda options: data_commands.run(options, make_console()),
        interrupted="stopped; nothing half-made is kept, run the same command again",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    keep_freed_memory()
    hint = getattr(options, "interrupted", RESUME_HINT)
    return guarded(lambda: _run(options), interrupted=hint)


def _run(options: argparse.Namespace) -> int:
    if (count := launched()) > 1 and not getattr(options, "together", False):
        raise ConfigError(
            f"expected metamae pretrain under torchrun, got another command in {count} processes; "
            "start it without torchrun"
        )
    return int(options.run(options))
