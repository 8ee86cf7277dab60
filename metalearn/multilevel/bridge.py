"""The only file that imports Betty: finds it, and mends what it lacks.

Betty 0.2.1 declares Python < 3.11 yet works on later versions, so it cannot be an ordinary
dependency: :data:`INSTALL_COMMAND` installs it. Nothing else in `metalearn` needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import (
    DisconnectedLossError,
    MissingBettyError,
    MultilevelError,
    NonFiniteLossError,
)
from metalearn.multilevel.conjugate import indirect_gradient
from metalearn.multilevel.hypergradients import NEUTRAL
from metalearn.multilevel.levels import BatchStream, Level
from metalearn.randomness import fold, seeded

REQUIRED_VERSION = "0.2.1"
OWN_CG = "metalearn_cg"
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
        device: Where batches are moved and random numbers drawn; ``None`` for the CPU, with
            batches left where they are.
    """
    import_betty()
    problem, engine = _subclasses()
    problems = {
        level.name: problem(level, _config(level, influences), seed, device) for level in levels
    }
    upwards = {problems[low.name]: [problems[high.name]] for low, high in pairwise(levels)}
    downwards = {
        problems[name]: [problems[lower] for lower in lowers] for name, lowers in influences.items()
    }
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
        "type": OWN_CG if level.method.name == "cg" else level.method.name,
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
    known = importlib.import_module("betty.hypergradient").jvp_fn_mapping
    known[OWN_CG] = indirect_gradient  # beside Betty's own, which nobody else loses
    return type("LevelProblem", (_LevelMixin, implicit), {}), engine


class _LevelMixin:
    """What a level does otherwise than Betty's ``ImplicitProblem``, which it is mixed into."""

    # What is used of Betty's class.
    cur_batch: Any
    paths: list[list[_LevelMixin]]
    _count: int

    def __init__(self, level: Level, config: Any, seed: int, device: torch.device | None) -> None:
        self.level, self.seed, self.torch_device = level, seed, device
        self.stream = BatchStream(level.batches, level.name, seed=seed, device=device)
        self.logged: dict[str, float] = {}
        self.terms: dict[str, float] = {}
        self.connected = False
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

    # One batch, one draw.

    def get_batch(self) -> Any:
        """The batch of this step; Betty counts from 1."""
        return self.stream(self._count - 1)

    def training_step(self, batch: Any) -> Tensor:
        """The loss, with the same random draws however often it is evaluated in one step."""
        with seeded(fold(self.seed, self.level.name, self._count), self.torch_device):
            value = self.level.loss(batch)
        loss: Tensor = value["loss"] if isinstance(value, Mapping) else value
        # Betty re-evaluates losses and expects no dict then.
        terms = value if isinstance(value, Mapping) else {}
        self.logged = {k: v.item() if isinstance(v, Tensor) else v for k, v in terms.items()}
        if self.level.method.exact_inverse:
            # Second derivatives are refused for parameters that a loss does not use.
            loss = loss + sum((0.0 * p * p).sum() for p in self.level.parameters)
        return loss

    def get_loss(self, batch: Any) -> Any:
        """Loss and numbers to log."""
        base: Any = super()
        with _unmoved([path[1:-1] for path in self.paths], parameters=False):
            loss, terms = base.get_loss(batch)
        if not terms["loss"] - terms["loss"] == 0.0:  # false for NaN and infinities
            raise NonFiniteLossError(
                f"expected a finite loss of level {self.level.name!r}, got {terms['loss']} at its "
                f"step {self._count}; nothing was updated. Lower its learning rate, or look at "
                "the batch"
            )
        self.terms = {**self.logged, **terms}
        return loss, terms

    def one_step_descent(self, batch: Any = None) -> Any:
        """One step; the first one checks that the level below depends on this one."""
        if self.paths and not self.connected:
            self._check_connected()
        for parameter in self.trainable_parameters():
            parameter.grad = None  # of whoever called backward() in between: Betty would add to it
        base: Any = super()
        return base.one_step_descent(batch)

    def backward(self, **arguments: Any) -> None:
        """Direct and indirect gradient.

        Betty moves the lower parameters to and fro, which rounds them, and evaluates in training
        mode, which moves running statistics: both are put back.
        """
        base: Any = super()
        with _unmoved([path[1:-1] for path in self.paths], parameters=True):
            base.backward(**arguments)

    def grad_callback(self) -> None:
        """Refuse a hypergradient that is not finite, before the optimiser moves."""
        if not self.paths:
            return
        gradients = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return
        raise NonFiniteLossError(
            f"expected a finite hypergradient of level {self.level.name!r}, got NaN or infinity at "
            f"its step {self._count}; nothing was updated at this level; lower "
            "Neumann's step size, or the learning rates"
        )

    def _check_connected(self) -> None:
        for path in self.paths:
            lowest = path[-2]
            parameters = self.trainable_parameters()
            with _unmoved([path[1:-1]], parameters=False):
                loss = lowest.training_step(lowest.cur_batch)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            if all(gradient is None for gradient in found):
                raise DisconnectedLossError(
                    f"expected the loss of level {lowest.level.name!r} to depend on the parameters "
                    f"of level {self.level.name!r}, it depends on none of them; read them inside "
                    "the loss (not detached, not copied), or name another level in `influences`"
                )
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
def _unmoved(paths: Sequence[Sequence[_LevelMixin]], *, parameters: bool) -> Iterator[None]:
    """Put buffers, and on request parameters, of these levels back to their bits afterwards."""
    levels = {problem.level for path in paths for problem in path}
    kept: list[Tensor] = [buffer for level in levels for buffer in level.module.buffers()]
    if parameters:
        kept += [parameter for level in levels for parameter in level.parameters]
    copies = [tensor.detach().clone() for tensor in kept]
    try:
        yield
    finally:
        for tensor, copy in zip(kept, copies, strict=True):
            # Through `data`: a graph that has saved a running mean it does not use stays valid.
            tensor.data.copy_(copy)
