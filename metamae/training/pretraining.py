"""Pretraining: a short loop over pure functions of (seed, step)."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from metamae.arguments import as_path
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import DataWarning
from metamae.files import write_json, write_text
from metamae.locks import locked
from metamae.progress import Reporter
from metamae.stopping import Requests, Stopped, held_back
from metamae.training.bilevel import BilevelRun
from metamae.training.callbacks import LOG, Callback, CallbackError, Callbacks, JsonLines, values_at
from metamae.training.devices import multiplies_bfloat16
from metamae.training.model_folder import write_model
from metamae.training.outcome import Pretrained
from metamae.training.run import Run
from metamae.training.run_folder import CHECKPOINT, CONFIG, DATA, HISTORY


def pretrain(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
) -> Pretrained:
    """Pretrain a method and leave all that is to be kept of it in ``run_dir``.

    From the start these are the configuration, what the data look like and a line of JSON for every
    logged step; at the end, and where it was stopped, the checkpoint that a run goes on from, and
    the model that :func:`metamae.load` opens, with a card; at the end also the history.

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
        callbacks: What else listens (:class:`metamae.training.Callback`); no number depends on it.

    Raises:
        CallbackError: a callback raised; the state reached is saved.
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
        write_json(run_dir / DATA, run.record().data_to_dict())
        write_text(run_dir / CONFIG, config.to_yaml())
        with Callbacks([JsonLines(run_dir / LOG, run.history.series), *callbacks]) as listening:
            run.on_checkpoint = listening.checkpoint
            listening.start(config, run.description, run.step)
            return _pretrain(run, reporter, listening)


def _pretrain(run: Run, reporter: Reporter, callbacks: Callbacks) -> Pretrained:
    """The steps that are left, and what is written after them."""
    steps = run.config.training.steps
    if steps > 0:
        _make_ready(run, reporter)
    with held_back() as requests:
        fault = _train(run, reporter, requests, callbacks) if steps > 0 else None
        run.save()
        write_model(run.run_dir, run.record(), run.method.state_dict())
        if run.step == steps:
            write_json(run.run_dir / HISTORY, run.history.series)
    try:
        if fault is not None:
            raise fault
        callbacks.checkpoint(run.step, run.run_dir / CHECKPOINT)
    except CallbackError as late:
        raise CallbackError(
            f"{late}, {_reached(run)}; mend it or leave it out, and resume"
        ) from late
    if requests.caught:
        raise _stopped(run, requests)
    result = Pretrained(
        method=run.method.eval(),
        history=run.history,
        steps=run.step,
        seconds=run.seconds,
        compiling=run.compiled.seconds if run.compiled else 0.0,
        cpu_seconds=run.cpu_seconds,
    )
    callbacks.end(result)
    return result


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


def _train(
    run: Run, reporter: Reporter, requests: Requests, callbacks: Callbacks
) -> CallbackError | None:
    """The remaining steps; a signal stops between two of them, and so does a failing callback."""
    total = run.config.training.steps
    with reporter.stage(_title(run), total=total, done=run.step) as stage:
        undecided = True
        try:
            for loss in run.train():
                stage.advance(loss=loss)
                if undecided and run.input.decision:
                    undecided = False
                    reporter.say(f"{_title(run)}: {run.input.decision}")
                values = values_at(run.history.series, run.step)
                if values:
                    callbacks.log(run.step, values)
                if requests.caught and run.step < total:
                    break
        except CallbackError as fault:
            return fault
    return None


def _reached(run: Run) -> str:
    return (
        f"after step {run.step} of {run.config.training.steps}, which is saved in "
        f"{run.run_dir / CHECKPOINT}"
    )


def _stopped(run: Run, requests: Requests) -> Stopped:
    name = signal.Signals(requests.caught).name
    return Stopped(requests.caught, f"stopped by {name} {_reached(run)}")


def _warn_of_odd_data(run: Run, reporter: Reporter) -> None:
    """Say what is odd about the data, or warn where nobody listens."""
    for line in run.remarks():
        text = f"{_title(run)}: warning: {line}"
        reporter.say(text)
        if reporter.console is None:
            warnings.warn(text, DataWarning, stacklevel=4)


def _title(run: Run) -> str:
    return f"{run.dataset_name} {run.config.method} #{run.config.seed}: pretrain"
