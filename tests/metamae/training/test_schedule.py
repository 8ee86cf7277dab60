"""Learning rates over the steps, clipped and accumulated gradients: against torch's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metamae import CheckpointError, Config, ConfigError, load_dataset, make_config
from metamae.config import TrainingConfig
from metamae.training import pretrain
from metamae.training.run import Run
from metamae.training.schedule import learning_rate
from tests.tiny import SIZES

STEPS = 12


def config_of(*overrides: str, method: str = "metamae") -> Config:
    own = (
        "training.steps=12",
        "training.batch_size=10",
        "training.log_every=1",
        "encoder.dropout=0.2",
    )
    return make_config("basic_motions", overrides=[*SIZES, *own, *overrides], method=method)


def start(tmp_path: Path, *overrides: str, method: str = "metamae") -> Run:
    data = load_dataset("basic_motions")
    return Run(config_of(*overrides, method=method), data, tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_rates_are_those_of_torchs_schedulers(warmup: int) -> None:
    """Linear warm-up from rate / W, then cosine to 0 at the last step."""
    training = TrainingConfig(
        learning_rate=0.3, steps=STEPS, warmup_steps=warmup, schedule="cosine"
    )
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS - warmup)
    schedulers: list[Any] = [cosine]
    if warmup:
        rise = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (step + 1) / warmup)
        schedulers = [rise, cosine]
        together = torch.optim.lr_scheduler.SequentialLR(optimiser, schedulers, [warmup])
        schedulers = [together]
    expected = []
    for _ in range(STEPS):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedulers[0].step()
    assert [learning_rate(training, step) for step in range(STEPS)] == pytest.approx(expected)


def test_a_constant_rate_stays_what_it_is() -> None:
    training = TrainingConfig(learning_rate=0.1, steps=5, warmup_steps=2)
    assert [learning_rate(training, t) for t in range(5)] == pytest.approx(
        [0.05, 0.1, 0.1, 0.1, 0.1]
    )
    assert TrainingConfig().schedule == "constant"
    assert learning_rate(TrainingConfig(), 99_999) == TrainingConfig().learning_rate


def test_every_step_uses_its_rate(tmp_path: Path) -> None:
    """The optimiser's, at each step; a resumed run goes on with the same bits."""
    schedule = (
        "training.schedule=cosine",
        "training.warmup_steps=3",
        "training.checkpoint_every=5",
    )
    run = start(tmp_path / "seen", *schedule)
    rates = [run.optimiser.param_groups[0]["lr"] for _ in run.train()]
    training = run.config.training
    assert rates == [learning_rate(training, step) for step in range(STEPS)]

    data = load_dataset("basic_motions")
    whole = pretrain(config_of(*schedule), data, tmp_path / "whole")
    broken = start(tmp_path / "cut", *schedule)
    for number, _ in enumerate(broken.train(), start=1):
        if number == 7:
            break
    resumed = pretrain(config_of(*schedule), data, tmp_path / "cut", resume=True)
    assert resumed.history.series == whole.history.series
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[name])


def test_the_number_of_steps_belongs_to_a_cosine(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    pretrain(config_of("training.schedule=cosine"), data, tmp_path)
    longer = config_of("training.schedule=cosine", "training.steps=14")
    with pytest.raises(CheckpointError, match=r"training\.steps: 12 -> 14"):
        pretrain(longer, data, tmp_path, resume=True)


def test_a_clipped_gradient_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    """Its direction stays; a short gradient is left alone."""
    gradients = {}
    for clip in (0.0, 0.01, 1e6):
        run = start(tmp_path, f"training.clip_norm={clip}", method="mae")
        run.advance()
        gradients[clip] = torch.cat(
            [p.grad.flatten() for p in run.method.parameters() if p.grad is not None]
        )
    assert gradients[0.0].norm() > 0.1
    assert gradients[0.01].norm().item() == pytest.approx(0.01, rel=1e-3)
    cosine = torch.cosine_similarity(gradients[0.01], gradients[0.0], dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(gradients[1e6], gradients[0.0])


@pytest.mark.parametrize("method", ["mae", "emix"])
def test_accumulated_gradients_are_the_mean_over_their_batches(tmp_path: Path, method: str) -> None:
    """Those that a run without accumulation takes one after the other, with their own dropout."""
    run = start(tmp_path, "training.accumulate=3", method=method)
    taken = run.advance()
    single = start(tmp_path, method=method)
    gradients, losses = [], []
    for number in range(3):
        single.optimiser.zero_grad()
        single.step = number
        losses.append(single.add_gradient(0).loss)
        gradients.append([p.grad.clone() for p in single.method.parameters() if p.grad is not None])
    means = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
    found = [p.grad for p in run.method.parameters() if p.grad is not None]
    torch.testing.assert_close(found, means, atol=1e-6, rtol=1e-5)
    assert taken.loss == pytest.approx(math.fsum(losses) / 3)
    assert {name: float(value) for name, value in taken.terms.items()}.keys() == taken.terms.keys()


def test_an_accumulating_run_takes_other_batches_in_every_step(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    done = pretrain(config_of("training.accumulate=2"), data, tmp_path)
    assert [step for step, _ in done.history.series["loss"]] == list(range(1, STEPS + 1))
    assert done.steps == STEPS


@pytest.mark.parametrize(
    "setting",
    ["schedule=cosine", "warmup_steps=2", "clip_norm=1", "accumulate=2"],
)
def test_learned_settings_take_none_of_it(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"where learn\.settings names some"):
        config_of(f"training.{setting}", "learn.settings=[step_size]")


@pytest.mark.parametrize(
    "setting",
    [
        "schedule=linear",
        "warmup_steps=-1",
        "clip_norm=-1",
        "clip_norm=.inf",
        "accumulate=0",
        "prefetch=maybe",
    ],
)
def test_impossible_values_are_named(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{setting.partition('=')[0]}"):
        config_of(f"training.{setting}")
