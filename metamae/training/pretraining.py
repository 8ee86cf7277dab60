"""Pretraining: a short loop over pure functions of (seed, step)."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from metamae.training.outcome import Pretrained
from metamae.training.ranked import RankedRun
from metamae.training.ranks import Ranks
from metamae.training.run import Run
from metamae.training.run_folder import CONFIG, DATA, HISTORY, has_checkpoint


def pretrain(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks | None = None,
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
        ranks: The processes that train together (:func:`metamae.training.ranks.joined`), each of
            which makes this call; the first of them writes, shows and calls back.

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
    ranks, device = ranks or Ranks(), torch.device(device)
    reporter = reporter if reporter and ranks.leads else Reporter(None)
    with locked(run_dir) if ranks.leads else nullcontext():
        run = start_run(config, dataset, run_dir, device, ranks)
        if ranks.from_first(lambda: resume and has_checkpoint(run_dir)):
            run.restore()
        if not ranks.leads:
            return _pretrain(run, reporter, Callbacks(), ranks)
        if run.step < config.training.steps:
            _warn_of_odd_data(run, reporter)
        write_json(run_dir / DATA, run.record().data_to_dict())
        write_text(run_dir / CONFIG, config.to_yaml())
        with Callbacks([JsonLines(run_dir / LOG, run.history.series), *callbacks]) as listening:
            listening.start(config, run.description, run.step)
            return _pretrain(run, reporter, listening, ranks)


def _pretrain(run: Run, reporter: Reporter, callbacks: Callbacks, ranks: Ranks) -> Pretrained:
    """The steps that are left, and what is written after them."""
    steps = run.config.training.steps
    if steps > 0:
        _make_ready(run, reporter)
    with held_back() as requests:
        listener = _Listener(run, callbacks, ranks)
        if steps > 0:
            _train(run, reporter, requests, listener)
        run.save()
        run.export()
        if ranks.leads and run.step == steps:
            write_json(run.run_dir / HISTORY, run.history.series)
    try:
        if fault := ranks.from_first(lambda: listener.fault):
            raise fault
        callbacks.checkpoint(run.step, run.saved_at)
    except CallbackError as late:
        raise CallbackError(
            f"{late}, {_reached(run)}; mend it or leave it out, and resume"
        ) from late
    if number := ranks.agree(requests.caught):
        raise _stopped(run, number)
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


def start_run(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Run:
    """A run before its first step: plain, of divided batches, or with an outer level (by Betty)."""
    ranks = ranks or Ranks()
    if config.training.parallel == "fsdp":
        from metamae.training.sharded import ShardedRun  # of a torch with torch.distributed

        return ShardedRun(config, dataset, run_dir, device, ranks)
    if ranks.size > 1 or config.training.micro_batch:
        return RankedRun(config, dataset, run_dir, device, ranks)
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
    if run.step < config.training.steps and run.compiles:
        run.compile(title, reporter)
    elif run.step < config.training.steps and config.compiles:
        reporter.say(f"{title}: not compiled: only whole batches in one process are")


class _Listener:
    """Tells callbacks; of several processes the first alone has some.

    Attributes:
        fault: What a callback raised.
    """

    def __init__(self, run: Run, callbacks: Callbacks, ranks: Ranks) -> None:
        self.run, self.callbacks, self.ranks = run, callbacks, ranks
        self.fault: CallbackError | None = None
        run.on_checkpoint = self.checkpoint

    def log(self, values: Mapping[str, float]) -> None:
        self._call(lambda: self.callbacks.log(self.run.step, values))

    def checkpoint(self, step: int, path: Path) -> None:
        self._call(lambda: self.callbacks.checkpoint(step, path))

    def _call(self, hook: Callable[[], None]) -> None:
        try:
            hook()
        except CallbackError as fault:
            self.fault = self.fault or fault
            if self.ranks.size == 1:
                raise


def _train(run: Run, reporter: Reporter, requests: Requests, listener: _Listener) -> None:
    """The remaining steps; a signal stops between two of them, and so does a failing callback.

    Several processes stop after the same step.
    """
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
                    listener.log(values)
                stop = listener.ranks.agree(_FAULT if listener.fault else requests.caught)
                if stop == _FAULT or (stop and run.step < total):
                    break
        except CallbackError:
            return  # the listener knows it


_FAULT = 1 << 16
"""In place of the number of a signal: a callback failed."""


def _reached(run: Run) -> str:
    return f"after step {run.step} of {run.config.training.steps}, which is saved in {run.saved_at}"


def _stopped(run: Run, number: int) -> Stopped:
    name = signal.Signals(number).name
    return Stopped(number, f"stopped by {name} {_reached(run)}")


def _warn_of_odd_data(run: Run, reporter: Reporter) -> None:
    """Say what is odd about the data, or warn where nobody listens."""
    for line in run.remarks():
        text = f"{_title(run)}: warning: {line}"
        reporter.say(text)
        if reporter.console is None:
            warnings.warn(text, DataWarning, stacklevel=4)


def _title(run: Run) -> str:
    return f"{run.dataset_name} {run.config.method} #{run.config.seed}: pretrain"
