"""The only file that imports Betty: finds it, and mends what it lacks.

Betty 0.2.1 declares Python < 3.11 yet works on later versions, so it cannot be an ordinary
dependency: :data:`INSTALL_COMMAND` installs it. Nothing else in `metalearn` needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import (
    ConvergenceWarning,
    DisconnectedLossError,
    MissingBettyError,
    MultilevelError,
    NonFiniteLossError,
)
from metalearn.multilevel.buffers import all_slots, set_aside, slots_below
from metalearn.multilevel.conjugate import indirect_gradient, neumann_gradient
from metalearn.multilevel.dependence import Dependence, depends
from metalearn.multilevel.directions import (
    Step,
    by_rates,
    by_update,
    seen_gradients,
    steps_of,
)
from metalearn.multilevel.hypergradients import NEUTRAL, ConjugateGradient, Sama
from metalearn.multilevel.levels import BatchStream, Level, checked_loss, cuda_of
from metalearn.randomness import fold, seeded

REQUIRED_VERSION = "0.2.1"
OWN = "metalearn_"
"""Prefix of the names under which Betty knows our hypergradient functions, beside its own."""
INSTALL_COMMAND = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def import_betty() -> ModuleType:
    """Return the `betty` package.

    Raises:
        MissingBettyError: Betty is missing, or is a version that does not work here; the message
            holds the command that installs the right one.

    Example:
        >>> from metalearn.multilevel.bridge import INSTALL_COMMAND
        >>> INSTALL_COMMAND
        'pip install --no-deps --ignore-requires-python betty-ml==0.2.1'
    """
    try:
        version = importlib.metadata.version("betty-ml")
        betty = importlib.import_module("betty")
    except importlib.metadata.PackageNotFoundError as missing:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION}, found none; run: {INSTALL_COMMAND}"
        ) from missing
    except ImportError as broken:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION} to import, it fails ({broken}); "
            f"run: {INSTALL_COMMAND}"
        ) from broken
    if version != REQUIRED_VERSION:
        raise MissingBettyError(
            f"expected betty-ml {REQUIRED_VERSION}, found {version}; run: {INSTALL_COMMAND}"
        )
    return betty


def build_engine(
    levels: Sequence[Level],
    influences: Mapping[str, Sequence[str]],
    *,
    seed: int,
    device: torch.device | None,
) -> tuple[Any, dict[str, Any]]:
    """Betty's engine over its problems, and the problems by the names of their levels.

    Args:
        levels: From the lowest to the highest.
        influences: Names of the levels whose loss the parameters of a level enter directly.
        seed: Seed of all draws.
        device: Where batches are moved and random numbers drawn; ``None`` for where the levels'
            parameters are, with batches left where they are.
    """
    import_betty()
    problem, engine = _subclasses()
    problems = {
        level.name: problem(level, _config(level, influences), levels, seed, device)
        for level in levels
    }
    upwards = {problems[low.name]: [problems[high.name]] for low, high in pairwise(levels)}
    downwards = {
        problems[name]: [problems[lower] for lower in lowers] for name, lowers in influences.items()
    }
    for name, lowers in influences.items():
        problems[name].influenced, problems[name].peers = tuple(lowers), problems
    with _without_log_lines():
        built = engine(
            problems=list(problems.values()),
            config=_engine_config(),
            dependencies={"l2u": upwards, "u2l": downwards},
        )
    return built, problems


def _config(level: Level, influences: Mapping[str, Sequence[str]]) -> Any:
    """Betty's configuration of a level, every field of it set here."""
    config = importlib.import_module("betty.configs").Config
    values = {
        "type": OWN + level.method.name,
        "unroll_steps": level.unroll_steps,
        # Betty's name for "take the indirect part too"; without it, its broken unrolling is used.
        "first_order": True,
        # The graph of a loss is walked once for the direct and once for the indirect part.
        "retain_graph": level.name in influences,
        "allow_unused": True,
        "gradient_accumulation": 1,
        "gradient_clipping": level.clip_norm,
        "precision": "fp32",  # autocast belongs into the loss
        "initial_dynamic_scale": 4096.0,
        "scale_factor": 2.0,
        "warmup_steps": level.warmup_steps,
        "log_step": -1,
        "log_local_step": False,
        "darts_multitask": False,
        "sama_multitask": False,
        **NEUTRAL,
        **level.method.betty_fields(),
    }
    return _filled(config, values)


def _engine_config() -> Any:
    config = importlib.import_module("betty.configs").EngineConfig
    values = {
        "train_iters": 1,  # never run by Betty: Multilevel.step drives it
        "valid_step": 1,
        "logger_type": "none",
        "roll_back": False,
        "backend": "gloo",
        "strategy": "cpu",  # devices are ours: Betty's "default" moves all to CUDA if there is one
        "early_stopping": False,
        "early_stopping_mode": "min",
        "early_stopping_tolerance": 1,
        "early_stopping_metric": "loss",
    }
    return _filled(config, values)


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    assert {field.name for field in fields(kind)} == set(values), "every field is set explicitly"
    return kind(**values)


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """Betty prints its structure to stdout through a logger of its own."""
    importlib.import_module("betty.logging.logger_base").get_logger()
    logger = logging.getLogger("betty")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def _subclasses() -> tuple[Any, Any]:
    """Subclasses of Betty's classes, made when Betty is there."""
    implicit = importlib.import_module("betty.problems").ImplicitProblem
    engine = importlib.import_module("betty.engine").Engine
    hypergradient: Any = importlib.import_module("betty.hypergradient")
    difference = hypergradient.darts

    def darts(vector: Sequence[Tensor], curr: Any, prev: Any, sync: bool) -> Any:
        return difference(by_rates(vector, curr), curr, prev, sync)

    def sama(vector: Sequence[Tensor], curr: Any, prev: Any, sync: bool) -> Any:
        return difference(by_update(vector, curr), curr, prev, sync)

    own = {"cg": indirect_gradient, "neumann": neumann_gradient, "darts": darts, "sama": sama}
    hypergradient.jvp_fn_mapping |= {OWN + name: function for name, function in own.items()}
    return type("LevelProblem", (_LevelMixin, implicit), {}), engine


class _LevelMixin:
    """What a level does otherwise than Betty's ``ImplicitProblem``, which it is mixed into."""

    # What is used of Betty's class.
    cur_batch: Any
    paths: list[list[_LevelMixin]]
    _paths: list[list[_LevelMixin]]
    _count: int

    def __init__(
        self,
        level: Level,
        config: Any,
        levels: Sequence[Level],
        seed: int,
        device: torch.device | None,
    ) -> None:
        self.level, self.levels, self.seed = level, levels, seed
        self.drawn_on = cuda_of(levels) if device is None else device
        self.stream = BatchStream(
            level.batches, level.name, seed=seed, device=device, drawn_on=self.drawn_on
        )
        self.influenced: tuple[str, ...] = ()
        self.peers: Mapping[str, _LevelMixin] = {}
        self.logged: dict[str, float] = {}
        self.terms: dict[str, float] = {}
        self.steps_taken: list[Step] = []
        self.residual = 0.0  # of conjugate gradients
        self.stepping = self.connected = False
        # Betty sets attributes of these names on every problem: keep clear of its own.
        init: Any = super().__init__
        init(f"level_{level.name}", config, level.module, level.optimiser, level.scheduler)

    # Modules, optimisers and schedulers stay the user's own objects.

    def patch_everything(self) -> None:
        """Betty would rebuild the optimiser from its defaults, and lose groups and state."""

    def parameters(self) -> list[Tensor]:
        """Those that are moved; Betty would take frozen ones too."""
        return self.trainable_parameters()

    def trainable_parameters(self) -> list[Tensor]:
        """See ``parameters``."""
        return list(self.level.parameters)

    def optimizer_step(self) -> None:
        """Move, and remember what `darts` and `sama` have to know of the move."""
        parameters, optimiser = self.trainable_parameters(), self.level.optimiser
        if self.level.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, self.level.clip_norm)
        keeps = isinstance(self.level.method, Sama)
        seen = seen_gradients(optimiser, parameters) if keeps else []
        self.steps_taken = steps_of(optimiser, parameters)
        optimiser.step()
        if keeps:
            for parameter, gradient in zip(parameters, seen, strict=True):
                state = optimiser.state[parameter]
                if gradient is not None and len(state) != 0:
                    state["last_grad"] = gradient

    # One batch, one draw.

    def get_batch(self) -> Any:
        """The batch of this step; Betty counts from 1."""
        return self.stream(self._count - 1)

    def training_step(self, batch: Any) -> Tensor:
        """The loss, with the same random draws however often it is evaluated in one step.

        Only in a level's own step do its buffers move, and never those of the levels below it.
        """
        slots = slots_below(self.level, self.levels) if self.stepping else all_slots(self.levels)
        draws = seeded(fold(self.seed, self.level.name, self._count), self.drawn_on)
        with set_aside(slots), draws:
            value = self.level.loss(batch)
        loss, self.logged = checked_loss(self.level.name, value)
        return loss

    def get_loss(self, batch: Any) -> Any:
        """Loss and numbers to log; the first one shows what it depends on."""
        base: Any = super()
        self.stepping = True
        try:
            loss, terms = base.get_loss(batch)
        finally:
            self.stepping = False
        if not terms["loss"] - terms["loss"] == 0.0:  # false for NaN and infinities
            raise NonFiniteLossError(
                f"expected a finite loss of level {self.level.name!r}, got {terms['loss']} at its "
                f"step {self._count}; nothing was updated. Lower its learning rate, or look at "
                "the batch"
            )
        self.terms = {**self.logged, **terms}
        if self.influenced and not self.connected:
            self._connect(loss)
        return loss, terms

    def one_step_descent(self, batch: Any = None) -> Any:
        """One step."""
        for parameter in self.trainable_parameters():
            parameter.grad = None  # of whoever called backward() in between: Betty would add to it
        base: Any = super()
        return base.one_step_descent(batch)

    def backward(self, **arguments: Any) -> None:
        """Direct and indirect gradient.

        Betty moves the lower parameters to and fro, which rounds them: they are put back.
        """
        base: Any = super()
        lower = {problem.level.name: problem for path in self.paths for problem in path[1:-1]}
        with _unmoved(problem.level for problem in lower.values()):
            base.backward(**arguments)
        for problem in lower.values():
            if isinstance(problem.level.method, ConjugateGradient):
                self._report_residual(problem)

    def _report_residual(self, lower: _LevelMixin) -> None:
        """Among the terms of this step, the largest; with a warning if it is too large."""
        method = lower.level.method
        assert isinstance(method, ConjugateGradient)
        self.terms["residual"] = max(lower.residual, self.terms.get("residual", 0.0))
        if not lower.residual <= method.max_residual:
            warnings.warn(
                f"expected conjugate gradients to leave at most {method.max_residual:g} of the "
                f"system of level {lower.level.name!r}, got {lower.residual:.3g} after "
                f"{method.iterations} iterations: level {self.level.name!r} learns from an inexact "
                "hypergradient; take more iterations, add a quadratic penalty to that loss, or "
                "accept it by ConjugateGradient(max_residual=...)",
                ConvergenceWarning,
                stacklevel=2,
            )

    def grad_callback(self) -> None:
        """Refuse a gradient that is not there or not finite, before the optimiser moves."""
        gradients = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        if not gradients:
            raise DisconnectedLossError(
                f"expected the loss of level {self.level.name!r} to depend on its own parameters, "
                "it depends on none of them and no level below learns from them; read its module "
                "inside the loss (not detached, not copied)"
            )
        if bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()):
            return
        kind, remedy = "gradient", "look at the slope of its loss there, or lower the learning rate"
        if self.paths:
            kind, remedy = "hypergradient", "lower Neumann's step size, or the learning rates"
        raise NonFiniteLossError(
            f"expected a finite {kind} of level {self.level.name!r}, got NaN or infinity at "
            f"its step {self._count}; nothing was updated at this level; {remedy}"
        )

    def _connect(self, loss: Tensor) -> None:
        """Take the paths that the losses themselves show, in place of Betty's single chain."""
        parameters = {n: problem.trainable_parameters() for n, problem in self.peers.items()}
        own, names = self.level.name, list(self.peers)  # lowest first
        below, reads, entered = names[: names.index(own)], {}, set()
        for place, name in enumerate(below):
            lower = self.peers[name].training_step(self.peers[name].cur_batch)
            found = depends(lower, {n: parameters[n] for n in (*below[:place], own)})
            reads[name] = found - {own}
            if own in found:
                entered.add(name)
        reads[own] = depends(loss, {name: parameters[name] for name in below}, keep_graph=True)
        chains = Dependence(own, below, reads, entered).chains(self.influenced)
        self._paths[:] = [[self, *(self.peers[n] for n in chain), self] for chain in chains]
        self.connected = True

    # Saving.

    def save(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        saved: dict[str, Any] = {
            "steps": self._count,
            "module": self.level.module.state_dict(),
            "optimiser": self.level.optimiser.state_dict(),
        }
        if self.level.scheduler is not None:
            saved["scheduler"] = self.level.scheduler.state_dict()
        return saved

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo :meth:`save`."""
        if ("scheduler" in saved) != (self.level.scheduler is not None):
            raise MultilevelError(
                f"expected level {self.level.name!r} to have a scheduler as it had when it was "
                "saved, and none if it had none"
            )
        self.level.module.load_state_dict(saved["module"])
        self.level.optimiser.load_state_dict(saved["optimiser"])
        if self.level.scheduler is not None:
            self.level.scheduler.load_state_dict(saved["scheduler"])
        self._count = saved["steps"]


@contextmanager
def _unmoved(levels: Iterable[Level]) -> Iterator[None]:
    """Put the parameters of these levels back to their bits afterwards."""
    kept = [parameter for level in levels for parameter in level.parameters]
    copies = [tensor.detach().clone() for tensor in kept]
    try:
        yield
    finally:
        for tensor, copy in zip(kept, copies, strict=True):
            tensor.data.copy_(copy)
