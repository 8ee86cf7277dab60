"""Commands on trained encoders: ``metamae embed``, ``reconstruct`` and ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metamae.artefact import Encoder, export, load
from metamae.artefact.export import FORMATS
from metamae.artefact.writing import check_table, write_embeddings
from metamae.cli.options import add_places
from metamae.cli.terminal import make_console
from metamae.data import load_dataset
from metamae.data.dataset import PartitionName
from metamae.data.own import Examples, is_path
from metamae.errors import ConfigError
from metamae.progress import Reporter
from metamae.report.reconstructions import PICTURES, check_picture, draw_reconstructions

PARTS = ("pretrain", "train", "test")


def add_encoder_commands(commands: Any) -> None:
    """Add ``metamae embed``, ``metamae reconstruct`` and ``metamae export``."""
    embed = commands.add_parser(
        "embed",
        help="turn data into embeddings",
        description="Embed data with a trained encoder: nothing is masked, the order is kept. "
        "A .csv or .parquet file has a row for each example: id, f0, f1, ...; .npy the numbers "
        "alone.",
    )
    _add_run_and_data(embed)
    embed.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="z.npy, z.csv or z.parquet"
    )
    embed.add_argument("--label", metavar="NAME", help="column, key or file, kept as column label")
    embed.add_argument(
        "--tokens", action="store_true", help="of every token, not their mean: (N, L, D), .npy only"
    )
    embed.add_argument(
        "--features",
        choices=("mean", "gradients"),
        default="mean",
        help="mean of the tokens' features (default), or that beside inner gradients",
    )
    embed.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows at once")
    embed.set_defaults(run=run_embed, interrupted="stopped; nothing was written")
    reconstruct = commands.add_parser(
        "reconstruct",
        help="draw what is predicted of masked data",
        description="Mask some examples, spread evenly over the data, and draw them beside the "
        "prediction, for runs of mae and metamae.",
    )
    _add_run_and_data(reconstruct)
    reconstruct.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"a picture: {', '.join(PICTURES)}"
    )
    reconstruct.add_argument("--examples", type=int, default=4, metavar="N", help="how many")
    reconstruct.add_argument("--seed", type=int, default=0, help="seed of the masks")
    reconstruct.set_defaults(run=run_reconstruct, interrupted="stopped; nothing was written")
    exporting = commands.add_parser(
        "export",
        help="write an encoder as a program for other runtimes",
        description="Write the encoder, scaling included, with a free batch size; checked against "
        "the encoder before the file gets its name.",
    )
    _add_run(exporting)
    exporting.add_argument(
        "--format",
        choices=FORMATS,
        help="torch (torch.export, .pt2) or onnx (default: by the ending of the file)",
    )
    exporting.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    exporting.add_argument(
        "--tokens", action="store_true", help="features of every token, not their mean"
    )
    exporting.set_defaults(run=run_export, device="cpu", interrupted="stopped; nothing was written")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run folder, or a folder that was saved"
    )


def _add_run_and_data(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("data", metavar="DATA", help="path to data like the run's own, or a data set's name")
    add("--part", choices=PARTS, help="rows of a data set by name (default: test)")
    add("--id", metavar="NAME", help="column, key or file with names of the rows")
    add("--skip-bad", action="store_true", help="leave out unreadable files")
    add_places(parser)


def run_embed(options: argparse.Namespace) -> int:
    """Run ``metamae embed``."""
    check_table(options.out)
    if options.tokens and options.out.suffix != ".npy":
        raise ConfigError(
            f"expected a file ending in .npy for --tokens, which has three axes, got "
            f"{options.out.name!r}"
        )
    if options.tokens and options.features != "mean":
        raise ConfigError("expected --tokens or --features gradients, got both; leave out one")
    reporter = Reporter(make_console())
    encoder = load(options.run_dir, options.device)
    read = read_data(encoder, options, reporter)
    compute = {"mean": encoder.embed, "gradients": encoder.embed_gradients}[options.features]
    if options.tokens:
        compute = encoder.embed_tokens
    embeddings = compute(read.partition, batch_size=options.batch_size)
    labels = name_labels(encoder, read) if options.label else None
    write_embeddings(options.out, embeddings, read.ids, labels)
    kept = "" if options.out.suffix != ".npy" else "; a .csv or .parquet file keeps the ids too"
    sizes = " x ".join(map(str, embeddings.shape[1:]))
    reporter.say(
        f"{len(embeddings)} rows of {sizes} numbers in {options.out}, in the order of the "
        f"data{kept}"
    )
    return 0


def run_reconstruct(options: argparse.Namespace) -> int:
    """Run ``metamae reconstruct``."""
    check_picture(options.out)
    if options.examples < 1:
        raise ConfigError(f"expected at least 1 example, got {options.examples}")
    reporter = Reporter(make_console())
    encoder = load(options.run_dir, options.device)
    method = encoder.need_decoder()
    options.label = None
    read = read_data(encoder, options, reporter)
    encoder.check_sizes(read.partition)
    draw_reconstructions(
        method, read.partition, options.out, examples=options.examples, seed=options.seed
    )
    count = min(options.examples, len(read.partition))
    reporter.say(f"{count} of {len(read.partition)} rows in {options.out}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Run ``metamae export``."""
    suffixes = {".pt2": "torch", ".onnx": "onnx"}
    form = options.format or suffixes.get(options.out.suffix)
    if form is None:
        raise ConfigError(
            f"expected --format torch or onnx, or a file ending in .pt2 or .onnx, got "
            f"{options.out.name!r}"
        )
    reporter = Reporter(make_console())
    encoder = load(options.run_dir)
    reporter.say(f"exporting {encoder} to {form}")
    done = export(
        encoder, options.out, format=form, output="tokens" if options.tokens else "features"
    )
    reporter.say(
        f"{done.path} ({done.path.stat().st_size / 2**20:.1f} MiB): {', '.join(done.inputs)} -> "
        f"{done.output}; raw values, the scaling is inside"
    )
    reporter.say(
        f"checked against the encoder with batches of 1, 2 and 7: largest difference "
        f"{done.difference:.1e}"
    )
    return 0


def read_data(encoder: Encoder, options: argparse.Namespace, reporter: Reporter) -> Examples:
    """Examples of a path, or of a part of a data set by name, as the encoder reads them.

    Raises:
        ConfigError: options of the one with the other.
        DataError: what cannot be read.
    """
    if is_path(options.data):
        if options.part is not None:
            raise ConfigError(
                f"expected --part with a data set by name, got it with {options.data}"
            )
        read = encoder.read(
            options.data,
            label=options.label or "",
            ids=options.id or "",
            skip_bad=options.skip_bad,
        )
        for line in read.remarks:
            reporter.say(line)
        return read
    named = [
        f"--{key.replace('_', '-')}" for key in ("label", "id", "skip_bad") if vars(options)[key]
    ]
    if named:
        raise ConfigError(f"expected {', '.join(named)} with a path, got the set {options.data!r}")
    dataset = load_dataset(
        options.data, data_dir=options.data_dir, token_size=encoder.config.token_size
    )
    part: PartitionName = options.part or "test"
    reporter.say(f"{options.data}: {len(dataset.need(part))} rows of its {part} part (--part)")
    return encoder.read(dataset.need(part))


def name_labels(encoder: Encoder, read: Examples) -> list[str]:
    """Labels as words, empty where a row has none."""
    labels, task = read.partition.labels, encoder.description.task
    assert labels is not None
    if task is None or not task.classes:
        return ["" if value != value else str(value) for value in labels.tolist()]
    return [task.classes[code] if code >= 0 else "" for code in labels.tolist()]
