"""Pretraining with an outer level: the weights train as ever, and some settings are learned.

The lower level is MetaMAE's training on most of the unlabelled examples. The upper one moves the
settings so that a training step helps the reference loss of the others
(:mod:`metamae.methods.learning`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from metalearn import MetalearnError, NonFiniteLossError
from metalearn.multilevel.hypergradients import HYPERGRADIENTS
from metalearn.multilevel.levels import Level
from metalearn.multilevel.problem import Multilevel
from metalearn.randomness import fold
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.errors import ConfigError, DataError, TrainingError
from metamae.files import write_json
from metamae.inputs import Batch, to_device
from metamae.methods.learning import LearningMetaMAE, initial_value
from metamae.methods.method import Draw
from metamae.methods.ratios import MixedRatioSplit
from metamae.randomness import generator
from metamae.training.batches import batch_indices
from metamae.training.devices import autocast
from metamae.training.run import Run, Step

LEARNED = "learned.json"
PREFIX = "learned/"


class BilevelRun(Run):
    """State of a pretraining run whose settings are learned."""

    def __init__(
        self, config: Config, dataset: Dataset, run_dir: Path, device: torch.device
    ) -> None:
        """See :class:`metamae.training.run.Run`."""
        super().__init__(config, dataset, run_dir, device)
        self.rows, self.held_out = cut(len(self.data), config)
        check_cut(len(self.rows), len(self.held_out), config, dataset.name)
        self.problem = self._build_problem()

    @property
    def learner(self) -> LearningMetaMAE:
        """The method, whose settings are parameters."""
        return cast(LearningMetaMAE, self.method)

    def remarks(self) -> list[str]:
        """The same, and settings that so few steps never move."""
        learn, steps = self.config.learn, self.config.training.steps
        least = learn.warmup_steps + learn.unroll_steps
        if steps >= least:
            return super().remarks()
        return [
            *super().remarks(),
            f"the settings to learn stay as they are in {steps} steps: they first move after "
            f"{least} (learn.warmup_steps and learn.unroll_steps)",
        ]

    def make_optimiser(self) -> torch.optim.Optimizer:
        """Of the weights alone: the settings have an optimiser of their own."""
        outer = {id(parameter) for parameter in self.learner.settings.parameters()}
        training = self.config.training
        return torch.optim.AdamW(
            [p for p in self.method.parameters() if id(p) not in outer],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
        )

    def _build_problem(self) -> Multilevel:
        learn = self.config.learn
        weights = Level(
            name="weights",
            module=self.learner,
            optimiser=self.optimiser,
            loss=self.training_loss,
            batches=self.load,
            hypergradient=HYPERGRADIENTS[learn.hypergradient](),
            unroll_steps=learn.unroll_steps,
            warmup_steps=learn.warmup_steps,
        )
        settings = Level(
            name="settings",
            module=self.learner.settings,
            optimiser=torch.optim.Adam(self.learner.settings.parameters(), lr=learn.learning_rate),
            loss=self.reference_loss,
            batches=self.load_held_out,
        )
        seed = fold(self.config.seed, "multilevel")
        return Multilevel([weights, settings], seed=seed, device=self.device)

    def prepare(self, step: int) -> tuple[Batch, MixedRatioSplit]:
        """Batch and draw of one training step; nothing is prepared ahead."""
        return self.load(step)

    def load(self, step: int) -> tuple[Batch, MixedRatioSplit]:
        """Batch and draw of one training step, from the examples that are not held out."""
        size, seed = self.config.training.batch_size, self.config.seed
        index = self.rows[batch_indices(len(self.rows), size, seed, step)]
        draw = self.learner.draw_training(size, generator(seed, "masks", step))
        return to_device(self.data.batch(index), self.device), draw.to(self.device)

    def load_held_out(self, step: int) -> tuple[Batch, MixedRatioSplit]:
        """Batch and draw of one outer step."""
        seed = fold(self.config.seed, "held out")
        size = min(self.config.training.batch_size, len(self.held_out))
        index = self.held_out[batch_indices(len(self.held_out), size, seed, step)]
        draw = self.learner.draw_reference(size, generator(seed, "masks", step))
        return to_device(self.data.batch(index), self.device), draw.to(self.device)

    def training_loss(self, inputs: tuple[Batch, MixedRatioSplit]) -> dict[str, Tensor]:
        """Loss of the lower level, and its terms."""
        with autocast(self.config, self.device):
            result = self.learner(*inputs)
        return {"loss": result.loss, **result.terms}

    def reference_loss(self, inputs: tuple[Batch, MixedRatioSplit]) -> Tensor:
        """Loss of the upper level: without dropout."""
        self.learner.eval()
        try:
            with autocast(self.config, self.device):
                return self.learner.reference(*inputs)
        finally:
            self.learner.train()

    def advance(self) -> Step:
        """One step of the weights, and of the settings where one is due."""
        try:
            progress = self.problem.step()
        except NonFiniteLossError as fault:
            raise TrainingError(
                f"{fault} (at step {self.step + 1} of training). Lower training.learning_rate, "
                "learn.learning_rate or adaptation.step_size, or look at the data"
            ) from fault
        except MetalearnError as fault:
            raise ConfigError(str(fault)) from fault
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        weights, settings = (progress.terms.get(level) for level in ("weights", "settings"))
        assert weights is not None
        rare = {"reference": settings["loss"]} if settings else {}
        return Step(weights["loss"], weights, lambda: self.load(self.step), rare)

    def monitor(self, batch: Batch, draw: Draw) -> dict[str, float]:
        """Support losses, and the settings."""
        learned = {PREFIX + name: value for name, value in self.learner.values().items()}
        return super().monitor(batch, draw) | learned

    def save(self) -> None:
        """Checkpoint, and what was learned so far beside it."""
        super().save()
        names = self.config.learn.settings
        write_json(
            self.run_dir / LEARNED,
            {
                "step": self.step,
                "start": {name: initial_value(name, self.config) for name in names},
                "learned": self.learner.values(),
            },
        )

    def optimiser_state(self) -> dict[str, Any]:
        """Both levels' optimisers and counters; tensors shared with the model are stored once."""
        return self.problem.state_dict()

    def load_optimiser_state(self, state: dict[str, Any]) -> None:
        """Continue both levels."""
        self.problem.load_state_dict(state)


def cut(examples: int, config: Config) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, both shuffled by the seed.

    Example:
        >>> from metamae.training.bilevel import cut
        >>> from metamae.config.schema import Config
        >>> [len(rows) for rows in cut(50, Config(dataset="digits"))]
        [45, 5]
    """
    order = torch.randperm(examples, generator=generator(config.seed, "held out"))
    count = max(1, round(examples * config.learn.held_out))
    return order[count:], order[:count]


def check_cut(training: int, held_out: int, config: Config, name: str) -> None:
    """Raise ``DataError`` unless both parts fill what a step needs of them."""
    needed = len(config.learn.reference_ratios)
    if training < config.training.batch_size or held_out < needed:
        raise DataError(
            f"expected {config.training.batch_size} examples of {name!r} to train on and {needed} "
            f"held out, got {training} and {held_out}; lower training.batch_size or change "
            "learn.held_out"
        )
