"""From a time budget to steps: a few steps are timed on this machine, and the number is kept."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from metamae.config.auto import auto_values
from metamae.config.reading import apply_override
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import ConfigError, DataError, shown
from metamae.training.pretraining import start_run

MINUTES = 5.0
"""Budget where none is given."""
LEAST, MOST = 20, 50_000
"""Steps that a budget becomes."""
TRIED, SECONDS = 8, 20.0
"""Steps that are timed at most, and for how long, after one to warm up."""


def auto_config(
    dataset: Dataset,
    *,
    method: str = "metamae",
    seed: int = 0,
    minutes: float | None = None,
    steps: int | None = None,
    overrides: Iterable[str] = (),
    device: torch.device | str = "cpu",
) -> Config:
    """The configuration of the preset ``auto``.

    The number of steps is part of it: a run of the same configuration has the same bits, however
    fast the machine is.

    Args:
        dataset: What is pretrained on: kinds of inputs and number of rows decide sizes.
        method: Its name.
        seed: Seed of the run.
        minutes: Budget for the steps, 5 where neither this nor ``steps`` is given.
        steps: Steps; nothing is timed.
        overrides: Strings such as ``"masking.mask_ratio=0.6"``; with ``training.steps`` among them
            nothing is timed either.
        device: Where the steps are timed.

    Raises:
        ConfigError: an impossible budget, or overrides that do not fit.
        DataError: nothing to pretrain on.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.training.auto import auto_config
        >>> config = auto_config(load_dataset("digits"), steps=300)
        >>> config.preset, config.training.steps, config.adaptation.step_size
        ('auto', 300, 20.0)
    """
    overrides = list(overrides)
    if minutes is not None and (
        isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < 1e6
    ):
        raise ConfigError(f"expected a budget of minutes above 0, got {shown(minutes)}")
    if dataset.pretrain is None or len(dataset.pretrain) < 2:
        raise DataError(f"expected two rows or more of {dataset.name!r} to pretrain on, got fewer")
    if method == "random":
        steps = 0
    if steps is None and not named_steps(overrides):
        tried = _resolve(dataset, method, seed, LEAST, overrides)
        budget = 60 * (MINUTES if minutes is None else minutes)
        steps = _in_steps(budget / seconds_a_step(tried, dataset, device))
    return _resolve(dataset, method, seed, LEAST if steps is None else steps, overrides)


def _resolve(
    dataset: Dataset, method: str, seed: int, steps: int, overrides: Iterable[str]
) -> Config:
    values = {"dataset": dataset.name, "preset": "auto", "method": method, "seed": seed}
    rows = len(dataset.need("train" if method == "supervised" else "pretrain"))
    config = _with(values, auto_values(dataset.inputs, rows, steps, method), overrides)
    if config.training.steps != steps:  # the overrides say how many: other settings follow them
        following = auto_values(dataset.inputs, rows, config.training.steps, method)
        config = _with(values, following, overrides)
    return config


def named_steps(overrides: Iterable[str]) -> bool:
    """Whether overrides say how many steps to take."""
    return any(text.partition("=")[0].strip() == "training.steps" for text in overrides)


def _with(
    values: dict[str, object], sections: dict[str, object], overrides: Iterable[str]
) -> Config:
    merged = values | sections
    for override in overrides:
        apply_override(merged, override)
    return Config.from_dict(merged)


def _in_steps(count: float) -> int:
    """Two digits of it: what is timed is not known better."""
    whole = int(max(LEAST, min(MOST, count)))
    unit: int = 10 ** max(0, len(str(whole)) - 2)
    return whole // unit * unit


def seconds_a_step(config: Config, dataset: Dataset, device: torch.device | str = "cpu") -> float:
    """Median time of a step here and now.

    Args:
        config: What is to be trained; its number of steps does not matter.
        dataset: On what.
        device: Where.
    """
    training = replace(
        config.training,
        steps=TRIED + 2,
        warmup_steps=0,
        checkpoint_every=TRIED + 10,
        compile="off",
        cuda_graphs="off",
        learning_rate=1e-5,  # nothing diverges; the time of a step does not depend on it
    )
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(
            replace(config, training=training), dataset, Path(folder), torch.device(device)
        )
        with closing(run.train()) as steps:
            start = time.perf_counter()
            for number, _ in enumerate(steps):
                now = time.perf_counter()
                if number > 0:
                    taken.append(now - start)
                if len(taken) >= TRIED or sum(taken) > SECONDS:
                    break
                start = now
    return max(statistics.median(taken), 1e-6)
