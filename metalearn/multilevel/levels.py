"""A level: parameters, their optimiser, a loss, and the batches it is taken on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree

from metalearn.errors import DisconnectedLossError, MultilevelError
from metalearn.multilevel.hypergradients import Hypergradient, Sama, resolve
from metalearn.randomness import fold, seeded

Loss: TypeAlias = Callable[[Any], "Tensor | Mapping[str, Any]"]
Batches: TypeAlias = Callable[[int], Any] | Iterable[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One level of a multilevel problem.

    Args:
        name: What logs, errors and saved states call it.
        module: Holds the parameters of this level, and any buffers, for saving. Only this level's
            own steps move these buffers; those of modules that no level holds are neither guarded
            nor saved.
        optimiser: Updates them. Its parameter groups are kept, and parameters that require no
            gradient stay as they are; parameters it does not hold are not touched either.
        loss: ``loss(batch)``, a scalar, or a dict of a scalar ``"loss"`` and further numbers to
            log. It may read the modules of other levels. Every draw from torch's global
            generators inside it (masks, dropout) is a function of the seed and of this level's
            step, so that a hypergradient sees the very loss that the step has seen.
        batches: A function of this level's step (from 0), or anything that can be iterated again
            and again and has a length, a ``DataLoader`` for instance.
        scheduler: Of the optimiser's learning rate, stepped after every step.
        clip_norm: Largest norm of this level's gradient; 0 for no bound.
        hypergradient: How the levels above differentiate through this level's solution: a name
            (``darts``, ``neumann``, ``cg``, ``sama``) or an object. Not read of the top level.
        unroll_steps: Steps of this level before the next one in the list takes one.
        warmup_steps: Steps of this level before the next one in the list takes its first.

    Raises:
        MultilevelError: an impossible setting; the message says what to change.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.levels import Level
        >>> model = torch.nn.Linear(2, 1)
        >>> Level(
        ...     name="weights",
        ...     module=model,
        ...     optimiser=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     loss=lambda x: model(x).square().mean(),
        ...     batches=lambda step: torch.ones(4, 2),
        ... ).method
        Darts(perturbation=0.01)
    """

    name: str
    module: nn.Module
    optimiser: Optimizer
    loss: Loss
    batches: Batches
    scheduler: LRScheduler | None = None
    clip_norm: float = 0.0
    hypergradient: str | Hypergradient = "darts"
    unroll_steps: int = 1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check what does not depend on the other levels."""
        resolve(self.hypergradient)
        if self.unroll_steps < 1 or self.warmup_steps < 0 or not self.clip_norm >= 0:
            raise MultilevelError(
                f"expected unroll_steps >= 1, warmup_steps >= 0 and clip_norm >= 0 of level "
                f"{self.name!r}, got {self.unroll_steps}, {self.warmup_steps}, {self.clip_norm}"
            )
        if not self.parameters:
            raise MultilevelError(
                f"expected the optimiser of level {self.name!r} to hold parameters that require a "
                "gradient, found none; pass it the parameters of this level"
            )
        saved = {id(parameter) for parameter in self.module.parameters()}
        if any(id(parameter) not in saved for parameter in self.parameters):
            raise MultilevelError(
                f"expected the module of level {self.name!r} to hold all parameters of its "
                "optimiser, for saving; put them into one module, nn.ModuleList for instance"
            )
        if self.scheduler is not None and self.scheduler.optimizer is not self.optimiser:
            raise MultilevelError(
                f"expected a scheduler of the optimiser of level {self.name!r}, got another's"
            )
        self._refuse_arguments()

    def _refuse_arguments(self) -> None:
        """Optimisers and schedulers are stepped without arguments."""
        if needed := _required(self.optimiser.step):
            raise MultilevelError(
                f"expected an optimiser of level {self.name!r} that steps along gradients it is "
                f"given, got {type(self.optimiser).__name__}, whose step() asks for {needed}; its "
                "own evaluations would know nothing of hypergradients: use SGD, Adam or AdamW"
            )
        if self.scheduler is not None and (needed := _required(self.scheduler.step)):
            raise MultilevelError(
                f"expected a scheduler of level {self.name!r} that is a function of the step, got "
                f"{type(self.scheduler).__name__}, whose step() asks for {needed}; use LambdaLR or "
                "another of its kind, or set the rate from what `run(log=...)` reports"
            )

    @property
    def method(self) -> Hypergradient:
        """The hypergradient as an object."""
        return resolve(self.hypergradient)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimiser moves, in its order."""
        return [
            parameter
            for group in self.optimiser.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def check_lower(self) -> None:
        """Raise ``MultilevelError`` if a level above cannot see through this one's optimiser."""
        groups = self.optimiser.param_groups
        if any(group.get("maximize", False) for group in groups):
            raise MultilevelError(
                f"expected an optimiser that minimises in level {self.name!r}, which others learn "
                "through, got maximize=True; minimise the negative loss instead"
            )
        if isinstance(self.method, Sama) and any(group.get("amsgrad", False) for group in groups):
            raise MultilevelError(
                f"expected an optimiser without amsgrad in level {self.name!r} for sama, which "
                "does not know the derivative of its maximum; use hypergradient='darts'"
            )
        known = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        if isinstance(self.method, Sama) and type(self.optimiser) not in known:
            raise MultilevelError(
                f"expected SGD, Adam or AdamW in level {self.name!r} for sama, got "
                f"{type(self.optimiser).__name__}, whose update it does not know; "
                "use one of these, or hypergradient='darts'"
            )


def _required(step: Callable[..., Any]) -> str:
    """Names of the arguments that a ``step`` cannot do without."""
    # A scheduler wraps its optimiser's step in one that shows `self`.
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(
        name
        for name, parameter in inspect.signature(step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in free and name != "self"
    )


def checked_loss(name: str, value: Any) -> tuple[Tensor, dict[str, Any]]:
    """The loss that a level's function returned, and what it logs, as numbers.

    Raises:
        MultilevelError: not a scalar tensor, a dict without one, or a term that is not a number.
        DisconnectedLossError: a loss without a graph.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.levels import checked_loss
        >>> checked_loss("weights", {"loss": torch.ones((), requires_grad=True), "share": 0.5})
        (tensor(1., requires_grad=True), {'loss': 1.0, 'share': 0.5})
    """
    terms = dict(value) if isinstance(value, Mapping) else {}
    if isinstance(value, Mapping) and "loss" not in terms:
        keys = ", ".join(map(str, terms)) or "none"
        raise MultilevelError(
            f"expected the loss of level {name!r} under the key 'loss', got the keys {keys}; "
            "return {'loss': ..., ...}, or the loss alone"
        )
    loss = terms.get("loss", value)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise MultilevelError(
            f"expected the loss of level {name!r} as a scalar floating-point tensor, got "
            f"{_described(loss)}; reduce it by .mean() or .sum(), and leave out .item()"
        )
    if not loss.requires_grad:
        raise DisconnectedLossError(
            f"expected the loss of level {name!r} to depend on parameters, got one without a "
            "graph; compute it from them without detach(), .data or torch.no_grad()"
        )
    logged = {key: _as_number(name, key, term) for key, term in terms.items()}
    return loss if loss.ndim == 0 else loss.reshape(()), logged


def _as_number(level: str, key: str, term: Any) -> Any:
    if isinstance(term, Tensor) and term.numel() != 1:
        raise MultilevelError(
            f"expected the term {key!r} that level {level!r} logs as a number, got "
            f"{_described(term)}; reduce it by .mean()"
        )
    return term.item() if isinstance(term, Tensor) else term


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"{type(value).__name__} {value!r:.40}"


def cuda_of(levels: Sequence[Level]) -> torch.device | None:
    """The CUDA device of the levels' parameters, whose generator is to be seeded too, if any."""
    devices = (p.device for level in levels for p in level.module.parameters())
    return next((device for device in devices if device.type == "cuda"), None)


class BatchStream:
    """Batches addressed by their number, so that a resumed run sees the ones it would have seen.

    What a source draws from torch's global generators (shuffling, augmentation) is a function of
    seed and number.

    Example:
        >>> import torch
        >>> from metalearn.multilevel.levels import BatchStream
        >>> stream = BatchStream([torch.zeros(1), torch.ones(1)], "weights", seed=0)
        >>> stream(2), stream(1)
        (tensor([0.]), tensor([1.]))
    """

    def __init__(
        self,
        source: Batches,
        name: str,
        *,
        seed: int,
        device: torch.device | None = None,
        drawn_on: torch.device | None = None,
    ) -> None:
        """See the class."""
        sized = isinstance(source, Iterable) and isinstance(source, Sized) and len(source) > 0
        if not callable(source) and not sized:
            raise MultilevelError(
                f"expected the batches of level {name!r} as a function of the step, or as an "
                f"iterable with a length of at least 1, got {type(source).__name__}; an endless "
                "stream cannot be resumed: pass a function that makes batch number `step`"
            )
        self.source, self.stream, self.seed, self.device = source, f"{name} data", seed, device
        self.drawn_on = drawn_on
        self.next = 0
        self.iterator: Iterator[Any] = iter(())

    def __call__(self, index: int) -> Any:
        """Batch number ``index`` on the device."""
        if callable(self.source):
            with seeded(fold(self.seed, self.stream, index), self.drawn_on):
                batch = self.source(index)
        else:
            batch = self._iterate_to(index)
        if self.device is None:
            return batch
        return _pytree.tree_map_only(Tensor, lambda x: x.to(self.device), batch)

    def _iterate_to(self, index: int) -> Any:
        assert isinstance(self.source, Sized)
        length = len(self.source)
        if index != self.next:
            self.next = index - index % length  # from the start of the epoch
        while True:
            batch = self._advance(length)
            if self.next == index + 1:
                return batch

    def _advance(self, length: int) -> Any:
        assert isinstance(self.source, Iterable)
        with seeded(fold(self.seed, self.stream, self.next), self.drawn_on):
            if self.next % length == 0:
                self.iterator = iter(self.source)
            batch = next(self.iterator)
        self.next += 1
        return batch
