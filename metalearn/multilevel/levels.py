"""A level: parameters, their optimiser, a loss, and the batches it is taken on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree

from metalearn.errors import MultilevelError
from metalearn.multilevel.hypergradients import Hypergradient, Sama, resolve
from metalearn.randomness import fold, seeded

Loss: TypeAlias = Callable[[Any], "Tensor | Mapping[str, Any]"]
Batches: TypeAlias = Callable[[int], Any] | Iterable[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One level of a multilevel problem.

    Args:
        name: What logs, errors and saved states call it.
        module: Holds the parameters of this level, and any buffers, for saving.
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
        unroll_steps: Steps of this level before the level above takes one.
        warmup_steps: Steps of this level before the level above takes its first.

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
        known = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        if isinstance(self.method, Sama) and type(self.optimiser) not in known:
            raise MultilevelError(
                f"expected SGD, Adam or AdamW in level {self.name!r} for sama, got "
                f"{type(self.optimiser).__name__}, whose update it does not know; "
                "use one of these, or hypergradient='darts'"
            )


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
        self, source: Batches, name: str, *, seed: int, device: torch.device | None = None
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
        self.next = 0
        self.iterator: Iterator[Any] = iter(())

    def __call__(self, index: int) -> Any:
        """Batch number ``index`` on the device."""
        if callable(self.source):
            with seeded(fold(self.seed, self.stream, index)):
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
        with seeded(fold(self.seed, self.stream, self.next)):
            if self.next % length == 0:
                self.iterator = iter(self.source)
            batch = next(self.iterator)
        self.next += 1
        return batch
