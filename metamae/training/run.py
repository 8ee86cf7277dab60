"""The state of one pretraining run, and its steps."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metalearn import NonFiniteLossError
from metalearn.checks import refuse_non_finite
from metalearn.randomness import fold, seeded
from metamae.config.schema import Config
from metamae.data.dataset import Dataset, labelled_batch
from metamae.data.description import Description
from metamae.data.fingerprint import fingerprint
from metamae.data.looking import look_at
from metamae.errors import CheckpointError, ConfigError, TrainingError
from metamae.inputs import Batch, to_device
from metamae.methods.building import build_method
from metamae.methods.method import Draw, Method, PretextLoss
from metamae.progress import Reporter
from metamae.randomness import generator
from metamae.training.batches import batch_indices, check_enough, pin_batch, pin_draw
from metamae.training.checkpoint import Checkpoint
from metamae.training.compiling import CompiledLoss
from metamae.training.devices import autocast
from metamae.training.feeding import Feed
from metamae.training.memory import in_memory
from metamae.training.model_folder import write_model
from metamae.training.provenance import versions
from metamae.training.record import ModelRecord
from metamae.training.resuming import (
    check_same_optimiser,
    check_state_shapes,
    named_mismatch,
    read_newest,
)
from metamae.training.run_folder import (
    CHECKPOINT,
    SHARDS,
    History,
    check_same_data,
    check_same_run,
)
from metamae.training.schedule import learning_rate
from metamae.training.soundness import all_finite

Loaded: TypeAlias = tuple[Batch, Draw]


@dataclass(frozen=True)
class Step:
    """One optimisation step.

    Attributes:
        loss: Value of the loss.
        terms: What it consists of.
        inputs: Batch and draw, for the numbers that only a logged step needs.
        rare: Numbers of steps that do not all have them; logged whenever there are some.
    """

    loss: float
    terms: Mapping[str, Tensor | float]
    inputs: Callable[[], Any]
    rare: Mapping[str, float] = field(default_factory=dict)


def _mean(taken: Sequence[Step]) -> Step:
    """Batches of one step as one: means of their terms, and the inputs of the first."""
    terms = {
        name: sum(float(step.terms[name]) for step in taken) / len(taken) for name in taken[0].terms
    }
    return Step(sum(step.loss for step in taken) / len(taken), terms, taken[0].inputs)


class Run:
    """State of one pretraining run: method, optimiser, step, history, time.

    A run of another kind replaces how the optimiser is made, what a step is, and what is logged and
    saved of it: :class:`metamae.training.bilevel.BilevelRun`.
    """

    def __init__(
        self, config: Config, dataset: Dataset, run_dir: Path, device: torch.device
    ) -> None:
        if config.method == "random" and config.training.steps > 0:
            raise ConfigError(
                f"expected training.steps=0 for method random, which is not trained, got "
                f"{config.training.steps}"
            )
        self.config, self.run_dir, self.device = config, run_dir, device
        self.method = self.build(dataset)
        self.data = dataset.need("train" if self.method.needs_labels else "pretrain")
        check_enough(self.data, config.training.batch_size, dataset.name)
        self.dataset_name, self.fingerprint = dataset.name, fingerprint(dataset)
        self.description = Description.of(dataset)
        self.licence = str(dataset.card.get("licence", ""))
        self.on_checkpoint: Callable[[int, Path], None] = lambda step, path: None
        self.wrap()
        self.optimiser = self.make_optimiser()
        self.step, self.seconds, self.history = 0, 0.0, History()
        self.cpu_seconds = 0.0
        self.compiled: CompiledLoss | None = None
        batches = config.training.steps * config.training.accumulate
        self.input: Feed[Any] = Feed(self.prepare, batches, config.training.prefetch, device)

    def build(self, dataset: Dataset) -> Method[Any]:
        """The method with its first weights, where it is trained."""
        with in_memory(self.config, self.device):
            method = build_method(self.config, dataset.inputs, dataset.task)
            return method.to(self.device).train()

    def wrap(self) -> None:
        """Make of the method what the loss is asked of, before there is an optimiser."""

    def make_optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of the weights."""
        training = self.config.training
        return torch.optim.AdamW(
            [p for p in self.method.parameters() if p.requires_grad],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )

    @property
    def compiles(self) -> bool:
        """Whether the loss is to be compiled."""
        return self.config.compiles

    def compile(self, title: str, reporter: Reporter) -> None:
        """Trace the loss on the next batch, and say what came of it."""
        settings = self.config.training
        reporter.say(f"{title}: compiling, which can take minutes (training.compile=off: none)")
        self.compiled = CompiledLoss(
            self.method,
            settings.batch_size,
            self.device,
            cuda_graphs=settings.cuda_graphs == "on",
            memory=settings.compile_memory,
        )
        batch, draw = self.put(self.prepare(self.step * settings.accumulate))
        with self.step_context():
            self.compiled.prepare(batch, draw)
        seconds = self.compiled.seconds
        if self.compiled.failure:
            text = f"{title}: not compiled, slower: {self.compiled.failure} (after {seconds:.1f} s)"
            if reporter.console is None:
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            reporter.say(text)
            return
        self.history.add(self.step + 1, compile_seconds=round(seconds, 3))
        reporter.say(f"{title}: compiled in {seconds:.1f} s")

    def train(self) -> Generator[float, None, None]:
        """Run the remaining steps, yielding the loss of each."""
        settings = self.config.training
        with self.input:
            while self.step < settings.steps:
                start = time.perf_counter(), time.process_time()
                taken = self.advance()
                self.seconds += time.perf_counter() - start[0]
                self.cpu_seconds += time.process_time() - start[1]
                self.log(taken)
                self.step += 1
                yield taken.loss
                if self.step % settings.checkpoint_every == 0 and self.step < settings.steps:
                    self.save()
                    self.on_checkpoint(self.step, self.saved_at)

    def advance(self) -> Step:
        """Take one optimisation step, on one batch or on several."""
        training = self.config.training
        self.optimiser.zero_grad(set_to_none=True)
        taken = [self.add_gradient(number) for number in range(training.accumulate)]
        if training.clip_norm:
            for parameters in self.method.gradient_groups():
                nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(training, self.step)
        self.optimiser.step()
        self.method.after_step()
        every = self.method.observes_every
        if every and self.step % every == 0:
            self.observe(*taken[0].inputs())
        return taken[0] if len(taken) == 1 else _mean(taken)

    def add_gradient(self, number: int) -> Step:
        """Add the gradient of batch ``number`` of this step; the weights have not moved."""
        share = self.config.training.accumulate
        batch, draw = self.put(self.input.take(self.step * share + number))
        with self.compiled.repeatable() if self.compiled else nullcontext():
            result = self.loss(batch, draw, number)
            (result.loss if share == 1 else result.loss / share).backward()
        value = self.finite_loss(result)  # here the host waits for the device, once a batch
        return Step(value, result.terms, lambda: (batch, draw))

    def prepare(self, number: int) -> Loaded:
        """Batch ``number`` of the run and its draw, on the CPU, ready for the device to fetch."""
        settings, seed = self.config.training, self.config.seed
        index = batch_indices(len(self.data), settings.batch_size, seed, number)
        labelled = self.method.needs_labels
        batch = labelled_batch(self.data, index) if labelled else self.data.batch(index)
        draw: Draw = self.draw(number)
        if self.device.type == "cuda":
            return pin_batch(batch), pin_draw(draw)
        return batch, draw

    def draw(self, number: int) -> Any:
        """Everything random about batch ``number``, apart from dropout, on the CPU."""
        settings = self.config.training
        progress = min(1.0, number // settings.accumulate / max(1, settings.steps - 1))
        return self.method.draw_at(
            settings.batch_size, generator(self.config.seed, "masks", number), progress
        )

    def put(self, loaded: Loaded) -> Loaded:
        """The same on the device, with what of the draw depends on the examples."""
        return self.completed(*loaded)

    def completed(self, batch: Batch, draw: Draw) -> Loaded:
        """Batch and draw on the device, the draw complete."""
        batch = to_device(batch, self.device)
        return batch, self.method.complete(batch, draw.to(self.device))

    def loss(self, batch: Batch, draw: Draw, number: int = 0) -> PretextLoss:
        """Loss of batch ``number`` of a step, with its dropout."""
        method = self.compiled or self.method
        with self.step_context(number):
            result: PretextLoss = method(batch, draw)
        return result

    @contextmanager
    def step_context(self, number: int = 0) -> Iterator[None]:
        """Dropout and precision of a batch of a step."""
        place = self.step * self.config.training.accumulate + number
        seed = fold(self.config.seed, "dropout", place)
        unmoved = self.naming_step("nothing was updated")
        with seeded(seed, self.device), autocast(self.config, self.device), unmoved:
            yield

    @contextmanager
    def naming_step(self, consequence: str) -> Iterator[None]:
        """Add the step to an error of the adapter."""
        try:
            yield
        except NonFiniteLossError as fault:
            raise TrainingError(
                f"{fault} (at step {self.step + 1} of training; {consequence})"
            ) from fault

    def log(self, taken: Step) -> None:
        """Add the numbers of a step to the history, where it is one to log."""
        terms = dict(taken.rare)
        last = self.step == self.config.training.steps - 1
        if last or self.step % self.config.training.log_every == 0:
            numbers = {name: float(term) for name, term in taken.terms.items()}
            terms = {"loss": taken.loss} | numbers | terms | self.monitored(taken)
        self.history.add(self.step + 1, **terms)

    def observe(self, batch: Batch, draw: Draw) -> None:
        """Let the method look at a step that was just taken."""
        self.method.eval()
        with autocast(self.config, self.device), self.naming_step("its update ruined the weights"):
            self.method.observe(batch, draw)
        self.method.train()

    def monitored(self, taken: Step) -> dict[str, float]:
        """Further numbers of a step."""
        return self.monitor(*taken.inputs())

    def monitor(self, batch: Batch, draw: Draw) -> dict[str, float]:
        """Further numbers of a step that is logged."""
        self.method.eval()
        with autocast(self.config, self.device), self.naming_step("its update ruined the weights"):
            numbers: dict[str, float] = self.method.monitor(batch, draw)
        self.method.train()
        return numbers

    def finite_loss(self, result: PretextLoss) -> float:
        """The loss; an error if it, or a support loss on the way to it, is not finite."""
        support = result.loss.new_zeros(()) if result.support is None else result.support.sum()
        value, inner = torch.stack([result.loss.detach(), support.to(result.loss)]).tolist()
        if math.isfinite(value) and math.isfinite(inner):
            return float(value)
        if result.support is not None:
            with self.naming_step("nothing was updated"):
                for number, losses in enumerate(result.support):
                    refuse_non_finite(losses, number)
        if math.isfinite(value):
            return float(value)  # finite support losses whose sum overflows
        terms = {name: term.item() for name, term in result.terms.items()}
        shown = ", ".join(f"{name} {number}" for name, number in terms.items())
        raise TrainingError(
            f"expected a finite loss, got {value} at step {self.step + 1} ({shown}); nothing was "
            "updated. Lower training.learning_rate or adaptation.step_size, or look at the data"
        )

    def remarks(self) -> list[str]:
        """What is odd about the data to train on, a line each."""
        return look_at(self.data, seed=self.config.seed)

    def refuse_ruined(self) -> None:
        """Refuse weights that the last update left unfit: the next loss would have told.

        Raises:
            TrainingError: weights, the optimiser's state or the loss they give are not finite.
        """
        if self.step == 0:
            return
        ruined = self.not_finite()
        if not ruined and not math.isfinite(self.loss_after()):
            ruined = ["the loss"]
        if ruined:
            raise TrainingError(
                f"expected finite weights, the update of step {self.step} left {ruined[0]} NaN or "
                "infinite; nothing was saved. Lower training.learning_rate, or look at the data"
            )

    def not_finite(self) -> list[str]:
        """Names of states that hold numbers which are not finite."""
        state = {"the weights": self.method.state_dict(), "the optimiser": self.optimiser_state()}
        return [name for name, values in state.items() if not all_finite(values)]

    def loss_after(self) -> float:
        """Loss of the last step's batch after its update, without dropout; changes nothing."""
        batch, draw = self.put(self.prepare((self.step - 1) * self.config.training.accumulate))
        seed = fold(self.config.seed, "dropout", self.step)
        self.method.eval()
        try:
            with torch.no_grad(), seeded(seed, self.device), autocast(self.config, self.device):
                result: PretextLoss = self.method(batch, draw)
        except NonFiniteLossError:
            return math.nan
        finally:
            self.method.train()
        return float(result.loss)

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            TrainingError: the last update ruined the weights; the file stays as it was.
        """
        self.refuse_ruined()
        self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Write it, of weights that were looked at."""
        state = self.checkpoint_of(self.method.state_dict(), self.optimiser_state())
        state.save(self.run_dir / CHECKPOINT)
        shutil.rmtree(self.run_dir / SHARDS, ignore_errors=True)  # of an earlier step

    def checkpoint_of(self, model: dict[str, Any], optimiser: dict[str, Any]) -> Checkpoint:
        """A checkpoint of this step."""
        return Checkpoint(
            config=self.config,
            step=self.step,
            model=model,
            optimiser=optimiser,
            history=self.history.series,
            seconds=self.seconds,
            provenance=versions() | {"optimiser": type(self.optimiser).__name__},
            data=self.fingerprint,
        )

    @property
    def saved_at(self) -> Path:
        """Where the last checkpoint is."""
        return self.run_dir / CHECKPOINT

    def export(self) -> None:
        """Write the model for others to read."""
        write_model(self.run_dir, self.record(), self.method.state_dict())

    def record(self) -> ModelRecord:
        """What the weights are of, as they are now."""
        return ModelRecord(
            config=self.config,
            description=self.description,
            step=self.step,
            rows=len(self.data),
            data=self.fingerprint,
            licence=self.licence,
            versions=versions(),
        )

    def optimiser_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the optimiser."""
        return self.optimiser.state_dict()

    def load_optimiser_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.optimiser.load_state_dict(state)

    def read_checkpoint(self) -> Checkpoint:
        """The checkpoint in the run folder."""
        return read_newest(self.run_dir, self.device)

    def restore(self) -> None:
        """Continue from the checkpoint in the run folder."""
        checkpoint = self.read_checkpoint()
        check_same_run(checkpoint.config, self.config, self.run_dir)
        check_same_data(checkpoint.data, self.fingerprint, self.dataset_name, self.run_dir)
        if checkpoint.step > self.config.training.steps:
            raise CheckpointError(
                f"expected at most {self.config.training.steps} steps in {self.run_dir}, found a "
                f"checkpoint after {checkpoint.step}; ask for more steps or use another folder"
            )
        with named_mismatch(self.saved_at):
            self.load_state(checkpoint)
            check_state_shapes(self.optimiser)
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        self.history = History(checkpoint.history)

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Take over weights and moments."""
        self.method.load_state_dict(checkpoint.model)
        check_same_optimiser(self.optimiser, checkpoint)
        self.load_optimiser_state(checkpoint.optimiser)
