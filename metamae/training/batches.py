"""Which examples a step takes, and input that is ready when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from metamae.data.dataset import Partition
from metamae.errors import DataError
from metamae.inputs import Batch, LabelledBatch
from metamae.methods.method import Draw
from metamae.randomness import generator

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Runs ``prepare(step + 1)`` in a thread of its own while the caller uses item ``step``.

    ``prepare`` has to be a function of the step alone, so what is prepared ahead, and by which
    thread, changes nothing. Its error is raised when its own step is asked for.

    Args:
        prepare: Makes the item of a step.
        steps: Number of steps: nothing is prepared from this one on.

    Example:
        >>> from metamae.training.batches import Prefetcher
        >>> with Prefetcher(lambda step: step**2, steps=3) as items:
        ...     [items.take(step) for step in range(3)]
        [0, 1, 4]
    """

    def __init__(self, prepare: Callable[[int], Item], steps: int) -> None:
        """See the class."""
        self.prepare, self.steps = prepare, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[Item]] | None = None

    def take(self, step: int) -> Item:
        """The item of a step."""
        ahead, self._ahead = self._ahead, None
        item = ahead[1].result() if ahead and ahead[0] == step else self.prepare(step)
        if step + 1 < self.steps:
            self._ahead = (step + 1, self._thread.submit(self.prepare, step + 1))
        return item

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def pin_batch(batch: Batch) -> Batch:
    """The same batch in memory that a GPU can read on its own."""
    pinned = {name: x.pin_memory() for name, x in batch.items()}
    if isinstance(batch, LabelledBatch):
        return LabelledBatch(pinned, batch.labels.pin_memory())
    return pinned


def pin_draw(draw: Draw) -> Draw:
    """The same draw, a dataclass of tensors and draws, in memory that a GPU can read on its own."""
    pinned: Draw = _pinned(draw)
    return pinned


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, tuple):
        return tuple(map(_pinned, value))
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _pinned(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **parts)
    return value


def check_enough(data: Partition, batch_size: int, name: str) -> None:
    """Raise ``DataError`` unless the data fill one batch."""
    if len(data) < batch_size:
        raise DataError(
            f"expected at least one batch of {batch_size} examples to pretrain on, {name!r} has "
            f"{len(data)}; lower training.batch_size"
        )


def batch_indices(examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Examples of batch number ``step``: shuffled epochs, the last partial batch dropped.

    Example:
        >>> from metamae.training.batches import batch_indices
        >>> epoch = [batch_indices(6, 2, seed=0, step=s) for s in range(3)]
        >>> sorted(sum((b.tolist() for b in epoch), []))
        [0, 1, 2, 3, 4, 5]
    """
    epoch, place = divmod(step, examples // batch_size)
    order = _epoch_order(examples, seed, epoch)
    return order[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=generator(seed, "order", epoch))
