"""Callbacks hear what a run does, change none of its numbers, and cannot ruin it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from metamae import Config, ConfigError, load_dataset
from metamae.artefact import load
from metamae.data.description import Description
from metamae.errors import MissingLibraryError
from metamae.stopping import Stopped
from metamae.training import Callback, CallbackError, Pretrained, pretrain, read_history
from metamae.training.callbacks import LOG, Callbacks, rows_of
from metamae.training.checkpoint import Checkpoint
from metamae.training.loggers import make_loggers
from metamae.training.model_folder import WEIGHTS
from metamae.training.run_folder import CHECKPOINT, HISTORY
from tests.metamae.artefact.making import config_of

MOTIONS = load_dataset("basic_motions")
FIVE = config_of("basic_motions", "training.steps=5", "training.log_every=2", method="mae")


class Listener(Callback):
    """Writes down what it hears; raises in one of the hooks."""

    def __init__(self, failing: str = "", at: int = 0) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.failing, self.at = failing, at

    def hear(self, hook: str, step: int, *more: Any) -> None:
        self.heard.append((hook, step, *more))
        if hook == self.failing and step >= self.at:
            raise ValueError("no\nspace")

    def on_start(self, config: Config, description: Description, step: int) -> None:
        self.hear("start", step, config.dataset, description.inputs[0].name)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        self.hear("log", step, sorted(values), values["loss"])

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.hear("checkpoint", step, Checkpoint.load(path).step)

    def on_end(self, result: Pretrained) -> None:
        self.hear("end", result.steps)

    def close(self) -> None:
        self.hear("close", 0)


def lines(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What the log holds, as steps and their numbers."""
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(row.pop("step"), row) for row in rows]


def test_callbacks_hear_everything_in_order(tmp_path: Path) -> None:
    listener = Listener()
    done = pretrain(FIVE, MOTIONS, tmp_path, callbacks=[Callback(), listener])
    losses = [value for _, value in done.history.series["loss"]]
    names = ["loss", "query"]
    assert listener.heard == [
        ("start", 0, "basic_motions", "signal"),
        ("log", 1, names, losses[0]),
        ("checkpoint", 2, 2),
        ("log", 3, names, losses[1]),
        ("checkpoint", 4, 4),
        ("log", 5, names, losses[2]),
        ("checkpoint", 5, 5),
        ("end", 5),
        ("close", 0),
    ]
    assert lines(tmp_path) == rows_of(done.history.series)
    assert lines(tmp_path) == rows_of(read_history(tmp_path / HISTORY))


def test_the_log_of_a_run_that_was_killed_is_exact(tmp_path: Path) -> None:
    """Steps after the last checkpoint were logged, and are taken again; half a line was written."""

    class Killed(Callback):
        def on_log(self, step: int, values: Mapping[str, float]) -> None:
            if step == 3:
                raise KeyboardInterrupt

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(FIVE, MOTIONS, whole)
    with pytest.raises(KeyboardInterrupt):
        pretrain(FIVE, MOTIONS, cut, callbacks=[Killed()])
    assert Checkpoint.load(cut / CHECKPOINT).step == 2
    assert [step for step, _ in lines(cut)] == [1, 3]
    with (cut / LOG).open("a") as file:
        file.write('{"step": 4, "lo')
    listener = Listener()
    pretrain(FIVE, MOTIONS, cut, resume=True, callbacks=[listener])
    assert listener.heard[0][:2] == ("start", 2)
    assert (cut / LOG).read_text() == (whole / LOG).read_text()
    assert [step for step, _ in lines(cut)] == [1, 3, 5]


def test_a_stopped_run_leaves_a_model_too(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_log(self, step: int, values: Mapping[str, float]) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        pretrain(FIVE, MOTIONS, tmp_path, callbacks=[Stop()])
    assert not (tmp_path / HISTORY).exists()
    reached = load(tmp_path).record
    (tmp_path / CHECKPOINT).unlink()
    assert load(tmp_path).record.to_dict() == reached.to_dict()
    assert reached.step == 3


@pytest.mark.parametrize(
    ("hook", "at", "reached"),
    [("start", 0, None), ("log", 3, 3), ("checkpoint", 2, 2), ("checkpoint", 5, 5), ("end", 5, 5)],
)
def test_a_callback_that_raises_stops_the_run_after_saving(
    hook: str, at: int, reached: int | None, tmp_path: Path
) -> None:
    listener, other = Listener(hook, at), Listener()
    message = rf"^expected the callback Listener to take on_{hook}, got ValueError: no space[^\n]*$"
    with pytest.raises(CallbackError, match=message) as caught:
        pretrain(FIVE, MOTIONS, tmp_path, callbacks=[listener, other])
    assert listener.heard[-2][:2] == (hook, at)
    assert [heard[0] for heard in (listener.heard[-1], other.heard[-1])] == ["close", "close"]
    assert other.heard[-2:-1] != listener.heard[-2:-1], "nobody is called after it"
    if reached is None:
        assert not (tmp_path / CHECKPOINT).exists()
    else:
        assert Checkpoint.load(tmp_path / CHECKPOINT).step == reached
        assert hook == "end" or f"after step {reached} of 5, which is saved in" in str(caught.value)
        assert (tmp_path / WEIGHTS).exists()
    done = pretrain(FIVE, MOTIONS, tmp_path, resume=True)
    again = pretrain(FIVE, MOTIONS, tmp_path / "straight")
    assert done.history == again.history
    assert lines(tmp_path) == lines(tmp_path / "straight")


def test_closing_is_named_unless_something_else_went_wrong(tmp_path: Path) -> None:
    bad = Listener("close")
    with pytest.raises(CallbackError, match="Listener to take close, got ValueError"):
        pretrain(FIVE, MOTIONS, tmp_path, callbacks=[bad])
    with pytest.raises(KeyError), Callbacks([bad]):
        raise KeyError


def test_something_else_is_no_callback(tmp_path: Path) -> None:
    callbacks: Any = [print]
    with pytest.raises(ConfigError, match=r"derive from metamae\.training\.Callback, got builtin"):
        pretrain(FIVE, MOTIONS, tmp_path, callbacks=callbacks)


# By name


def test_names_are_checked_and_packages_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="among tensorboard, wandb, mlflow, got 'wand'; did you"):
        make_loggers(["wand"], tmp_path)
    with pytest.raises(ConfigError, match="expected every logger once"):
        make_loggers(["wandb", "wandb"], tmp_path)
    for name, command in (
        ("wandb", "pip install wandb"),
        ("mlflow", "pip install mlflow"),
        ("tensorboard", r"pip install 'metamae\[tensorboard\]'"),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingLibraryError, match=f"the package {name} .*; run: {command}"):
            make_loggers([name], tmp_path)


def test_tensorboard_has_every_logged_number(tmp_path: Path) -> None:
    """Once each, also where a run goes on."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    longer = config_of("basic_motions", "training.steps=7", "training.log_every=2", method="mae")
    pretrain(FIVE, MOTIONS, tmp_path, callbacks=make_loggers(["tensorboard"], tmp_path))
    done = pretrain(
        longer, MOTIONS, tmp_path, resume=True, callbacks=make_loggers(["tensorboard"], tmp_path)
    )
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    for name, points in done.history.series.items():
        events = found.Scalars(name)
        assert [event.step for event in events] == [step for step, _ in points]
        np.testing.assert_allclose(
            [event.value for event in events], [value for _, value in points], rtol=1e-6
        )


def recorder(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """A stand-in for a package that is not installed here, and what was asked of it."""
    module, calls = ModuleType(name), []
    monkeypatch.setitem(sys.modules, name, module)
    return module, calls


def test_wandb_gets_the_numbers_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls = recorder(monkeypatch, "wandb")

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        return SimpleNamespace(
            id="abc",
            log=lambda values, step: calls.append(("log", step, values)),
            finish=lambda: calls.append(("finish",)),
            summary={},
        )

    module.init = init
    done = pretrain(FIVE, MOTIONS, tmp_path, callbacks=make_loggers(["wandb"], tmp_path))
    options = calls[0][1]
    assert options["config"] == FIVE.to_dict()
    assert (options["project"], options["name"], options["id"]) == (
        "metamae",
        "basic_motions mae #0",
        None,
    )
    assert [call[1:] for call in calls if call[0] == "log"] == rows_of(done.history.series)
    assert calls[-1] == ("finish",)
    pretrain(FIVE, MOTIONS, tmp_path, resume=True, callbacks=make_loggers(["wandb"], tmp_path))
    assert calls[-2][1]["id"] == "abc"


def test_mlflow_gets_the_numbers_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls = recorder(monkeypatch, "mlflow")

    def start_run(**options: Any) -> Any:
        calls.append(("start", options))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    module.start_run = start_run
    module.log_params = lambda values: calls.append(("params", values))
    module.log_metrics = lambda values, step: calls.append(("log", step, values))
    module.end_run = lambda: calls.append(("end",))
    done = pretrain(FIVE, MOTIONS, tmp_path, callbacks=make_loggers(["mlflow"], tmp_path))
    assert calls[0] == ("start", {"run_id": None, "run_name": "basic_motions mae #0"})
    assert calls[1][1]["training.steps"] == 5
    assert [call[1:] for call in calls if call[0] == "log"] == rows_of(done.history.series)
    assert calls[-1] == ("end",)
    pretrain(FIVE, MOTIONS, tmp_path, resume=True, callbacks=make_loggers(["mlflow"], tmp_path))
    assert calls[-2:] == [("start", {"run_id": "abc", "run_name": None}), ("end",)]
