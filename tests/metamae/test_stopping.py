"""Signals end work where it can be saved."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from metamae import TrainingError, load_dataset, make_config
from metamae.errors import LockedError
from metamae.locks import locked
from metamae.stopping import SIGNALS, Stopped, held_back, stoppable
from metamae.training import Checkpoint, pretrain
from metamae.training.run import Run
from tests.attacks.running import TINY, equal_bits


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_and_the_second_does_not(number: int) -> None:
    before = signal.getsignal(number)
    with stoppable(), held_back() as requests:
        signal.raise_signal(number)
        assert requests.caught == number
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(number)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    with pytest.raises(Stopped), stoppable():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_handler_of_somebody_else_stays() -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with stoppable(), held_back() as requests:
            signal.raise_signal(signal.SIGTERM)
        assert (caught, requests.caught) == ([signal.SIGTERM], 0)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stop_travels_between_processes() -> None:
    stop = pickle.loads(pickle.dumps(Stopped(15, "reached", "go on")))
    assert (stop.number, stop.message, stop.hint) == (15, "reached", "go on")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("at", [1, 3, 6])
def test_pretraining_saves_the_step_it_reached(
    number: int, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the last step, when nothing is left but to write it."""
    config = make_config("basic_motions", overrides=[*TINY, "training.steps=6"], method="mae")
    data, log = load_dataset("basic_motions"), Run.log
    whole = pretrain(config, data, tmp_path / "whole")

    def stopping(self: Run, taken: Any) -> None:
        log(self, taken)
        if self.step + 1 == at:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "log", stopping)
    with pytest.raises(Stopped, match=f"after step {at} of 6, which is saved in ") as stop:
        pretrain(config, data, tmp_path / "cut")
    assert stop.value.code == 128 + number
    assert Checkpoint.load(tmp_path / "cut" / "checkpoint.pt").step == at
    monkeypatch.setattr(Run, "log", log)
    done = pretrain(config, data, tmp_path / "cut", resume=True)
    assert equal_bits(done.method.state_dict(), whole.method.state_dict())


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C is heard, though a shell that runs the tests in the background lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


METHODS = ("mae", "metamae", "capri", "emix", "shed", "mae_linear", "supervised")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_last_update_that_ruins_the_weights_is_an_error(
    method: str, steps: int, tmp_path: Path
) -> None:
    """Nothing is saved of it, whatever the method."""
    rate = f"training.learning_rate={'1e38' if steps == 1 else '1e300'}"
    overrides = [*TINY, f"training.steps={steps}", rate]
    config = make_config("basic_motions", overrides=overrides, method=method)
    with pytest.raises(TrainingError, match=r"learning_rate|ruined the weights"):
        pretrain(config, load_dataset("basic_motions"), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_weights_that_are_finite_and_useless_are_an_error(tmp_path: Path) -> None:
    """The next loss would have told."""
    overrides = [*TINY, "training.steps=1", "training.learning_rate=1e25"]
    config = make_config("basic_motions", overrides=overrides, method="mae")
    with pytest.raises(TrainingError, match="the update of step 1 left the loss NaN or infinite"):
        pretrain(config, load_dataset("basic_motions"), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_pretraining_locks_its_folder(tmp_path: Path) -> None:
    config = make_config("basic_motions", overrides=[*TINY, "training.steps=1"], method="mae")
    with ThreadPoolExecutor(1) as other, locked(tmp_path):
        done = other.submit(pretrain, config, load_dataset("basic_motions"), tmp_path)
        assert isinstance(done.exception(), LockedError)
    assert list(tmp_path.iterdir()) == []
