"""Runs as one HTML page: results, loss curves, reconstructions, configurations, versions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metamae.data import POCKET, SOURCES, load_dataset
from metamae.data.dataset import Dataset
from metamae.errors import DataError
from metamae.evaluation.feature_cache import run_features
from metamae.methods.mae import MAE
from metamae.report.curves import draw_curves
from metamae.report.embedding_map import draw_map
from metamae.report.figure import draw_report
from metamae.report.html import Block, Chapter, Grid, Paragraph, Picture, Preformatted, write_page
from metamae.report.label_page import chapter_of
from metamae.report.reconstructions import draw_reconstructions
from metamae.report.rows import Result
from metamae.report.tables import make_report
from metamae.report.wording import LABELS
from metamae.training.checkpoint import Checkpoint
from metamae.training.run_folder import CHECKPOINT, load_method

PICTURED = ("metamae", "mae", "mae_contrast", "umae", "gon")
"""Methods whose reconstructions are drawn, the first that is there."""
LEAST_POINTS = 3
"""Test rows that a map needs."""
MOST_PICTURES = 6
"""Data sets of which curves and reconstructions are drawn."""


@dataclass(frozen=True)
class RunFolder:
    """A run that is reported.

    Attributes:
        path: Its folder.
        trained: Its checkpoint.
    """

    path: Path
    trained: Checkpoint

    @property
    def data(self) -> str:
        """Name of the data set that it was trained on."""
        return self.trained.config.dataset

    @property
    def method(self) -> str:
        """Its method."""
        return self.trained.config.method


def find_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Run folders among paths and anywhere below them.

    Raises:
        CheckpointError: a damaged checkpoint.
    """
    found = {
        file.parent: None
        for path in paths
        if path.is_dir()
        for file in sorted(path.rglob(CHECKPOINT))
    }
    return [RunFolder(path, Checkpoint.load(path / CHECKPOINT)) for path in found]


def write_run_page(
    path: Path,
    runs: Sequence[RunFolder],
    rows: Sequence[Result],
    *,
    method: str = "metamae",
    against: str = "mae",
    data_dir: Path | None = None,
) -> None:
    """Write the page, whole or not at all.

    Pictures of reconstructions need the data: those of data sets by name are at hand.

    Args:
        path: File to write.
        runs: Runs, for curves, reconstructions, configurations and versions.
        rows: Result rows, for tables and their figure.
        method: Method whose differences are shown,
        against: to this one.
        data_dir: Folder of the full data sets.

    Raises:
        DataError: neither runs nor rows.
    """
    if not runs and not rows:
        raise DataError("expected run folders or results for a page, found none; pretrain first")
    with tempfile.TemporaryDirectory() as folder:
        chapters: list[Chapter] = []
        if rows:
            chapters.append(_figure(rows, Path(folder) / "results.png"))
            chapters += [
                chapter_of(section) for section in make_report(rows, method=method, against=against)
            ]
        elif runs:
            text = "No run was probed yet: metamae probe RUN adds its results to this page."
            chapters.append(Chapter("Results", [Paragraph(text, "note")]))
        chapters += _of_data(runs, Path(folder), data_dir)
        if runs:
            chapters += [_runs(runs), _configurations(runs)]
        names = dict.fromkeys([run.data for run in runs] + [row.dataset for row in rows])
        write_page(path, f"metamae: {', '.join(names)}", chapters)


def _figure(rows: Sequence[Result], file: Path) -> Chapter:
    draw_report(rows, file)
    alt = "Results by protocol and method; the numbers are in the tables below"
    return Chapter("Results", [Picture(path=file, alt=alt)])


def _of_data(runs: Sequence[RunFolder], folder: Path, data_dir: Path | None) -> list[Chapter]:
    """Curves and reconstructions, data set by data set."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(run.data, []).append(run)
    chapters = []
    for number, (name, group) in enumerate(list(groups.items())[:MOST_PICTURES]):
        blocks = [
            *_curves(name, group, folder / f"curves-{number}.png"),
            *_reconstructions(name, group, folder / f"pictures-{number}.png", data_dir),
            *_map(group, folder / f"map-{number}.png", data_dir),
        ]
        chapters.append(Chapter(f"{name}: training", blocks))
    if len(groups) > MOST_PICTURES:
        text = f"{len(groups) - MOST_PICTURES} more data sets are not drawn: name their folders."
        chapters.append(Chapter("More", [Paragraph(text, "note")]))
    return chapters


def _curves(name: str, runs: Sequence[RunFolder], file: Path) -> list[Block]:
    histories: dict[str, list[dict[str, list[list[float]]]]] = {}
    for run in runs:
        if run.method in LABELS and run.trained.history.get("loss"):
            histories.setdefault(run.method, []).append(run.trained.history)
    if not histories:
        return [Paragraph("No losses: nothing was trained.", "note")]
    draw_curves(histories, file)
    alt = f"Losses of {', '.join(LABELS[method] for method in histories)} on {name} over the steps"
    return [Picture(path=file, alt=alt, caption="Thin lines are runs, thick ones their mean.")]


def _reconstructions(
    name: str, runs: Sequence[RunFolder], file: Path, data_dir: Path | None
) -> list[Block]:
    of_values = [run for run in runs if run.trained.config.target.kind == "values"]
    shown = next((run for m in PICTURED for run in of_values if run.method == m), None)
    if shown is None:
        return []
    dataset = _at_hand(shown, data_dir)
    if dataset is None:
        text = (
            f"The data of {name!r} are not at hand; metamae reconstruct RUN DATA draws what the "
            "run makes of them."
        )
        return [Paragraph(text, "note")]
    method = load_method(shown.path / CHECKPOINT, dataset.inputs)
    assert isinstance(method, MAE)
    part = dataset.test or dataset.pretrain or dataset.train
    assert part is not None
    draw_reconstructions(method, part, file)
    label = LABELS[shown.method]
    caption = f"{label}, seed {shown.trained.config.seed}, examples of test rows where there are."
    return [Picture(path=file, alt=f"What {label} makes of masked examples", caption=caption)]


def _map(runs: Sequence[RunFolder], file: Path, data_dir: Path | None) -> list[Block]:
    """Test rows on the plane of their features, of the run that is pictured."""
    shown = next((run for m in PICTURED for run in runs if run.method == m), runs[0])
    dataset = _at_hand(shown, data_dir)
    if dataset is None or dataset.task is None or len(dataset.test or ()) < LEAST_POINTS:
        return []
    draw_map(run_features(shown.path, dataset), file)
    label = LABELS.get(shown.method, shown.method)
    caption = (
        f"Features of test rows under {label}, seed {shown.trained.config.seed}, along their two "
        "principal components (and by UMAP, where umap-learn is installed)."
    )
    return [Picture(path=file, alt=f"A map of the features of {label}", caption=caption)]


def _at_hand(run: RunFolder, data_dir: Path | None) -> Dataset | None:
    known = run.data in POCKET or (run.data in SOURCES and data_dir is not None)
    if not known:
        return None
    return load_dataset(run.data, data_dir=data_dir, token_size=run.trained.config.token_size)


def _runs(runs: Sequence[RunFolder]) -> Chapter:
    lines = []
    for run in runs:
        config, versions = run.trained.config, run.trained.provenance
        done = f"{run.trained.step} of {config.training.steps}"
        text = ", ".join(f"{key} {value}" for key, value in versions.items())
        seconds = f"{run.trained.seconds:.1f}"
        place = str(run.path)
        lines.append(
            (place, run.data, run.method, str(config.seed), done, seconds, run.trained.data, text)
        )
    header = ("run", "data", "method", "seed", "steps", "seconds", "fingerprint", "versions")
    return Chapter("Runs", [Grid(header=header, lines=lines)])


def _configurations(runs: Sequence[RunFolder]) -> Chapter:
    """One a data set and method, of the first run."""
    blocks: list[Block] = []
    seen = set()
    for run in runs:
        if (run.data, run.method) not in seen:
            seen.add((run.data, run.method))
            blocks += [Paragraph(str(run.path)), Preformatted(run.trained.config.to_yaml())]
    return Chapter("Configuration", blocks)
