"""Pretraining: a short loop over pure functions of (seed, step)."""

from __future__ import annotations

import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metamae.arguments import as_path
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import DataWarning
from metamae.files import write_json, write_text
from metamae.locks import locked
from metamae.methods.method import Method
from metamae.progress import Reporter
from metamae.stopping import Requests, Stopped, held_back
from metamae.training.bilevel import BilevelRun
from metamae.training.devices import multiplies_bfloat16
from metamae.training.run import Run
from metamae.training.run_folder import CHECKPOINT, CONFIG, HISTORY, History


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A finished pretraining run.

    Attributes:
        method: The trained method, on its device, in eval mode.
        history: Logged numbers.
        steps: Optimisation steps taken.
        seconds: Time spent in them (data, loss, gradients, update), without compiling, logging and
            saving.
        compiling: Time that ``training.compile`` took in this call, 0 without it.
        cpu_seconds: Processor time of all threads in the steps of this call; unlike ``seconds``
            without those before a resume. Other processes disturb it less.
    """

    method: Method[Any]
    history: History
    steps: int
    seconds: float
    compiling: float = 0.0
    cpu_seconds: float = 0.0


def pretrain(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Pretrained:
    """Pretrain a method and leave config, checkpoint and history in ``run_dir``.

    Data order, masks and dropout are functions of the seed and the step number, so a run that was
    killed and resumed from its last checkpoint ends with the same bits as one that was not (on the
    same machine and torch version).

    Args:
        config: The resolved configuration.
        dataset: Where the examples come from: the unlabelled ones, or the labelled training rows
            for a method that needs labels.
        run_dir: Folder of this run; made if missing.
        device: Where to train.
        resume: Continue from the checkpoint in ``run_dir``, if there is one.
        reporter: Shows progress; silent by default.

    Raises:
        CheckpointError: a damaged checkpoint, or one of another configuration or of other data.
        ConfigError: settings that do not fit the method, such as steps for ``random``.
        DataError: fewer examples than one batch, or unusable examples.
        LockedError: another process is at work on ``run_dir``.
        TrainingError: a loss or weights that are not finite; the last checkpoint stays as it was.
        Stopped: a signal (Ctrl-C, SIGTERM) came; the state reached is saved. The second signal does
            not wait for that.

    Warns:
        DataWarning: constant channels, or values far from a scale of 1, where ``reporter`` is
            silent (:func:`metamae.data.looking.look_at`).

    Example:
        >>> import tempfile, pathlib
        >>> from metamae import load_dataset, make_config
        >>> from metamae.training.pretraining import pretrain
        >>> config = make_config("basic_motions", overrides=["training.steps=2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pretrain(config, load_dataset("basic_motions"), pathlib.Path(folder)).steps
        2
    """
    run_dir = as_path(run_dir, "a run folder")
    reporter, device = reporter or Reporter(None), torch.device(device)
    with locked(run_dir):
        run = start_run(config, dataset, run_dir, device)
        if resume and (run_dir / CHECKPOINT).is_file():
            run.restore()
        if run.step < config.training.steps:
            _warn_of_odd_data(run, reporter)
        write_text(run_dir / CONFIG, config.to_yaml())
        if config.training.steps > 0:
            _make_ready(run, reporter)
        with held_back() as requests:
            if config.training.steps > 0:
                _train(run, reporter, requests)
            run.save()
            write_json(run_dir / HISTORY, run.history.series)
        if requests.caught:
            raise _stopped(run, requests)
    return Pretrained(
        method=run.method.eval(),
        history=run.history,
        steps=run.step,
        seconds=run.seconds,
        compiling=run.compiled.seconds if run.compiled else 0.0,
        cpu_seconds=run.cpu_seconds,
    )


def start_run(config: Config, dataset: Dataset, run_dir: Path, device: torch.device) -> Run:
    """A run before its first step: plain, or with an outer level, which needs Betty."""
    learns = config.method == "metamae" and config.learn.settings
    return (BilevelRun if learns else Run)(config, dataset, run_dir, device)


def _make_ready(run: Run, reporter: Reporter) -> None:
    """Compile where that is asked for; a signal does not wait for it."""
    config, title = run.config, _title(run)
    if config.training.autocast == "bfloat16" and not multiplies_bfloat16(run.device):
        reporter.say(
            f"{title}: this {run.device.type} device has no bfloat16 products, which makes "
            "training.autocast=bfloat16 slower than off"
        )
    if config.compiles and run.step < config.training.steps:
        run.compile(title, reporter)


def _train(run: Run, reporter: Reporter, requests: Requests) -> None:
    """The remaining steps; a signal stops between two of them, when what is reached is saved."""
    total = run.config.training.steps
    with reporter.stage(_title(run), total=total, done=run.step) as stage:
        undecided = True
        for loss in run.train():
            stage.advance(loss=loss)
            if undecided and run.input.decision:
                undecided = False
                reporter.say(f"{_title(run)}: {run.input.decision}")
            if requests.caught and run.step < total:
                run.save()
                raise _stopped(run, requests)


def _stopped(run: Run, requests: Requests) -> Stopped:
    return Stopped(
        requests.caught,
        f"stopped by {signal.Signals(requests.caught).name} after step {run.step} of "
        f"{run.config.training.steps}, which is saved in {run.run_dir / CHECKPOINT}",
    )


def _warn_of_odd_data(run: Run, reporter: Reporter) -> None:
    """Say what is odd about the data, or warn where nobody listens."""
    for line in run.remarks():
        text = f"{_title(run)}: warning: {line}"
        reporter.say(text)
        if reporter.console is None:
            warnings.warn(text, DataWarning, stacklevel=4)


def _title(run: Run) -> str:
    return f"{run.dataset_name} {run.config.method} #{run.config.seed}: pretrain"
