"""What a step of pretraining takes, method beside method: in turns, and with nothing beside."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch

from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import DataError
from metamae.progress import Reporter
from metamae.training.pretraining import start_run

Times: TypeAlias = dict[str, dict[str, float]]
"""Milliseconds a step by data set and method."""

ROUNDS = 8
STEPS = 3
"""Steps of a method in every round, after as many to warm up."""


def time_steps(
    configs: Sequence[Config],
    dataset: Dataset,
    *,
    device: torch.device,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    reporter: Reporter | None = None,
) -> dict[str, float]:
    """Milliseconds of a pretraining step by method: medians over rounds of alternating methods.

    A step is what a run takes from one to the next: input, loss, gradient, update and logging.
    Methods alternate, so that what else the machine does meets all of them alike. Methods that
    take no steps are left out.

    Args:
        configs: One configuration a method.
        dataset: What they are pretrained on.
        device: Where to train; the number of threads is that of the calling process.
        rounds: Rounds that are timed.
        steps: Steps of each method in a round.
        reporter: Shows progress.

    Example:
        >>> import torch
        >>> from metamae import load_dataset, make_config
        >>> from metamae.experiments.timing import time_steps
        >>> configs = [make_config("basic_motions", method=name) for name in ("mae", "metamae")]
        >>> data = load_dataset("basic_motions")
        >>> times = time_steps(configs, data, device=torch.device("cpu"), rounds=1, steps=1)
        >>> sorted(times)
        ['mae', 'metamae']
    """
    trained = [config for config in configs if config.training.steps > 0]
    taken: dict[str, list[float]] = {config.method: [] for config in trained}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {
            config.method: stack.enter_context(
                closing(_steps(config, dataset, folder / config.method, device, rounds * steps))
            )
            for config in trained
        }
        stage = stack.enter_context(
            (reporter or Reporter(None)).stage("timing", total=rounds, unit="rounds")
        )
        for number in range(rounds + 1):
            for method, run in runs.items():
                start = time.perf_counter()
                for _ in range(steps):
                    next(run)
                if number > 0:
                    taken[method].append(1000 * (time.perf_counter() - start) / steps)
            if number > 0:
                stage.advance()
    return {method: statistics.median(times) for method, times in taken.items()}


def read_times(path: Path) -> Times:
    """What was measured before; nothing where there is no file.

    Raises:
        DataError: a damaged file.
    """
    if not path.exists():
        return {}
    try:
        return {
            str(name): {str(method): float(value) for method, value in times.items()}
            for name, times in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, AttributeError) as fault:
        raise DataError(
            f"expected times of steps in {path}, got a damaged file ({fault}); delete it"
        ) from fault


def _steps(
    config: Config, dataset: Dataset, folder: Path, device: torch.device, count: int
) -> Generator[float, None, None]:
    """The steps of a run that is never saved."""
    enough = 10 * count + 100
    # A rate at which nothing diverges: the time of a step does not depend on it.
    training = replace(
        config.training,
        steps=enough,
        checkpoint_every=enough,
        compile="off",
        learning_rate=min(config.training.learning_rate, 1e-5),
    )
    return start_run(replace(config, training=training), dataset, folder, device).train()
