"""``metamae probe``: evaluate the encoder of a run folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from metamae.cli.options import add_data_options, add_places, open_named
from metamae.cli.terminal import make_console
from metamae.config.presets import override
from metamae.config.schema import Config
from metamae.data import POCKET, SOURCES, Dataset
from metamae.data.description import Description
from metamae.data.fingerprint import fingerprint
from metamae.data.own import is_path
from metamae.errors import ConfigError, DataError
from metamae.evaluation.candidates import POOLED
from metamae.evaluation.feature_cache import FEATURES, Pooling, run_features
from metamae.evaluation.features import Features
from metamae.evaluation.protocols import MORE, PROTOCOLS, labels_of, reads
from metamae.experiments.evaluate_run import probe_row
from metamae.experiments.plan import MOST_CELLS
from metamae.inputs import check_transfer
from metamae.locks import locked
from metamae.progress import Reporter
from metamae.report.rows import DEFAULT, Result, read_results, write_results
from metamae.report.wording import describe_place, mean_and_spread, with_spread
from metamae.training.checkpoint import Checkpoint
from metamae.training.devices import choose_device
from metamae.training.run_folder import CHECKPOINT, read_record

PROBES = "probes.json"


def add_probe(commands: Any) -> None:
    """Add ``metamae probe``."""
    parser = commands.add_parser(
        "probe",
        help="evaluate a pretrained encoder",
        description="Evaluate the frozen encoder of a run folder; rows are added to probes.json "
        "in it, and features are kept beside the checkpoint.",
        epilog=f"protocols: {', '.join(PROTOCOLS)}, and few-N for any N; where they are named, "
        f"{', '.join(MORE)} too",
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="folder of metamae pretrain, or of a sweep")
    add(
        "--on",
        metavar="DATA",
        help="data set, or path to your own data, to probe on (default: the pretraining set)",
    )
    add(
        "--protocol",
        nargs="+",
        default=["published"],
        metavar="P",
        help="evaluation protocols, or all (default: published)",
    )
    add(
        "--features",
        choices=tuple(name for name in FEATURES if name != "all"),
        help="mean of the tokens' (default), components of all tokens, these joined with the "
        "inputs' own, or mean beside inner gradients; the protocol attentive reads all tokens",
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
    add_data_options(parser)
    parser.set_defaults(
        run=run_probe, interrupted="stopped; rows of protocols that were finished are kept"
    )


def _variant(run_dir: Path, config: Config, kind: Pooling | None) -> str:
    """The run's own variant, told by where a sweep put it, and that of other features.

    A row of a variant must not take the place of its default's in a report of both.
    """
    *_, dataset, variant, method, seed = ("", "", "", *run_dir.resolve().parts)
    placed = (dataset, method, seed) == (config.dataset, config.method, f"seed-{config.seed}")
    own = variant if placed else DEFAULT
    if kind is None:
        return own
    return kind if own == DEFAULT else f"{own}, {kind}"


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
    if not 1 <= options.seeds <= MOST_CELLS:
        raise ConfigError(f"expected at least 1 seed and up to {MOST_CELLS}, got {options.seeds}")
    trained = Checkpoint.load(options.run_dir / CHECKPOINT)
    config = trained.config
    changed = override(config, options.set)
    device = choose_device(options.device)
    reporter = Reporter(make_console())
    dataset = open_probed(options, trained, reporter)
    name = dataset.name
    with locked(options.run_dir):
        trained = Checkpoint.load(options.run_dir / CHECKPOINT)  # as it is now, and stays
        features: dict[Pooling, Features] = {}
        data = fingerprint(dataset)
        if name == config.dataset and trained.data not in ("", data):
            reporter.say(
                f"warning: {name!r} is not what the run was trained on: its data have the "
                f"fingerprint {data}, the run's had {trained.data}"
            )
        for protocol in protocols:
            kind: Pooling = options.features or reads(protocol)
            if kind not in features:
                features[kind] = run_features(options.run_dir, dataset, device=device, pooling=kind)
            usual = kind == reads(protocol)
            new_rows = [
                probe_row(
                    trained,
                    features[kind],
                    protocol,
                    transfer=name,
                    variant=_variant(options.run_dir, config, None if usual else kind),
                    device=device,
                    probe=changed.probe,
                    probe_seed=config.seed + number,
                    data=data,
                    reporter=reporter,
                )
                for number in range(options.seeds)
            ]
            if not usual:
                new_rows = [
                    replace(row, settings=f"{row.settings}, {POOLED[kind]}") for row in new_rows
                ]
            _add(options.run_dir / PROBES, new_rows)
            reporter.say(describe(new_rows))
    return 0


def open_probed(options: argparse.Namespace, trained: Checkpoint, reporter: Reporter) -> Dataset:
    """The data set to probe on, with inputs that the run reads.

    Own data become inputs as the run's own did, with its scaling and levels.

    Raises:
        ConfigError: a run on own data, whose path was not given.
        DataError: other columns or shapes, or no label.
        InputError: a data set by name whose tokens are others.
    """
    config = trained.config
    own = config.dataset not in (*POCKET, *SOURCES)
    if options.on is None and own:
        raise ConfigError(
            f"expected the path of the data to probe on, for {options.run_dir} was trained on own "
            "data; add --on DATA, and --label NAME"
        )
    name = options.on or config.dataset
    kept = read_record(options.run_dir, trained, data_dir=options.data_dir).description
    if not is_path(name):
        dataset = open_named(options, name=name, token_size=config.token_size)
        dataset.need_task()
        if name != config.dataset:
            check_transfer(kept.inputs, dataset.inputs, names=(config.dataset, name))
        return dataset
    if not kept.recipe:
        dataset = open_named(options, name=name, say=reporter.say)
        check_transfer(kept.inputs, dataset.inputs, names=(config.dataset, name))
    else:
        dataset = open_named(options, name=name, like=kept, say=reporter.say)
        _warn_of_seen_rows(options, dataset, kept, reporter)
    if dataset.task is None:
        raise DataError(f"expected a label to probe {name} for, got none; add --label NAME")
    return dataset


def _warn_of_seen_rows(
    options: argparse.Namespace, dataset: Dataset, kept: Description, reporter: Reporter
) -> None:
    """Say so where test rows may be among those that the run was trained on."""
    split = kept.recipe.get("split", {})
    same = all(
        (getattr(options, key) or "") == split.get(key, "") for key in ("label", "group", "split")
    ) and options.test_share in (None, split.get("test_share"))
    if dataset.name == kept.name and not (split.get("held_out") and same):
        reporter.say(
            "warning: the run was trained without this label, group and split: test rows may be "
            "among those it saw, unlabelled; give metamae pretrain the same --label to keep them "
            "out"
        )


def _add(path: Path, new_rows: list[Result]) -> None:
    """Write rows beside those that are there, in place of those with the same keys."""
    rows = {row.key: row for row in [*read_results(path), *new_rows]}
    write_results(path, rows.values())


def describe(rows: list[Result]) -> str:
    """One line on the results of a protocol, over probe seeds.

    A single result of several draws shows their spread.
    """
    first = rows[0]
    if len(rows) == 1 and first.draws > 1:
        shown = with_spread(first.value, first.spread, first.metric) + f" over {first.draws} draws"
    else:
        shown = mean_and_spread([row.value for row in rows], first.metric)
    where = describe_place(first.dataset, first.transfer)
    metric = first.metric.replace("_", " ")
    return f"{where}, {first.method}, {first.protocol} ({first.settings}): {metric} {shown}"
