"""The processes that ``torchrun`` started for one run: who is who, and what they agree on."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from metalearn import gather_rows
from metamae.errors import ConfigError, TrainingError, reason_of

T = TypeVar("T")

_LOST = ("connection", "peer", "socket", "gloo", "nccl", "timed out", "broken pipe")
"""In what torch says where another process is gone."""


class LostRankError(TrainingError):
    """Another process of the run ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run. ``Ranks()`` is a run in one process.

    Batches are divided in rows: every process has as many as any other, or one fewer.

    Attributes:
        rank: Number of this process, from 0, the one that writes.
        size: Number of processes.

    Example:
        >>> from metamae.training.ranks import Ranks
        >>> [Ranks(rank, 4).rows(6) for rank in range(4)]
        [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None), slice(4, 6, None)]
        >>> Ranks(0, 4).counts(6), Ranks().rows(6)
        ((1, 2, 1, 2), slice(0, 6, None))
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch."""
        start, stop = (batch_size * (self.rank + n) // self.size for n in (0, 1))
        return slice(start, stop)

    def counts(self, batch_size: int) -> tuple[int, ...]:
        """How many rows every process has."""
        shares = (Ranks(rank, self.size).rows(batch_size) for rank in range(self.size))
        return tuple(share.stop - share.start for share in shares)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes; see :func:`metalearn.gather_rows`."""
        return rows if self.size == 1 else gather_rows(rows, counts)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, which all get the same."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return [float(number) for number in numbers]

    def all(self, value: T) -> list[T]:
        """Every process's value, in order, in all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def from_first(self, action: Callable[[], T]) -> T:
        """What an action comes to in process 0, which alone takes it; its error is everybody's."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = action()
            except Exception as fault:
                outcome[1] = fault
        dist.broadcast_object_list(outcome, 0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def check_same(self, what: str, value: str) -> None:
        """Refuse processes that were not given the same.

        Raises:
            ConfigError: in the processes that differ from process 0.
        """
        first = self.from_first(lambda: value)
        if value != first:
            raise ConfigError(
                f"expected the same {what} in all {self.size} processes, got {value[:200]!r} in "
                f"process {self.rank} and {first[:200]!r} in process 0; start all with one "
                "torchrun command, on the same data"
            )


def launched() -> int:
    """How many processes ``torchrun``, or a launcher like it, started; 1 where there is none.

    Example:
        >>> from metamae.training.ranks import launched
        >>> launched()
        1
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return 1
    return int(os.environ["WORLD_SIZE"])


_claimed: bool | None = None
"""Whether this process is the one to tell what ended the run; ``None`` before any has ended."""


def tells() -> bool:
    """Whether this process is to print an error: the first that failed does, of several.

    Before they have met that is process 0: what is wrong then is wrong for all.
    """
    if _claimed is not None:
        return _claimed
    return launched() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """The processes of this run while they work together, and the device of this one.

    In one process that is ``Ranks()`` and the device as it is. Of several, ``auto`` and ``cuda``
    are the CUDA device of the process's number on its machine. They talk by gloo on a CPU and by
    NCCL on CUDA. When one ends by an error or is killed, the others find out and end too.

    Args:
        device: Its name: ``auto``, ``cpu``, ``cuda``.

    Raises:
        ConfigError: devices that several processes would share.
        LostRankError: another process ended.
    """
    global _claimed
    size = launched()
    if size == 1:
        yield Ranks(), device
        return
    rank = int(os.environ["RANK"])
    device = _device_of(device, int(os.environ.get("LOCAL_RANK", rank)))
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device != "cpu":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend)
        with warnings.catch_warnings():
            # Of axes of size 1, whose strides say nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield Ranks(rank, size), device
    except RuntimeError as fault:
        _claim()
        if isinstance(fault, dist.DistError) or _is_lost(fault):
            raise LostRankError(
                f"expected {size} processes that go on together, got one that ended (process "
                f"{rank} heard: {_heard(fault)}); look for what ended it, then go on "
                "from the last checkpoint with --resume"
            ) from fault
        raise
    except BaseException:
        _claim()
        raise
    finally:
        with suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()


def _is_lost(fault: RuntimeError) -> bool:
    text = str(fault).lower()
    return not isinstance(fault, TrainingError) and any(word in text for word in _LOST)


def _heard(fault: RuntimeError) -> str:
    """What torch says, without places in its sources and addresses."""
    return re.sub(r"\[[^\]]*\](:\d+)?:?\s*", "", reason_of(fault))[:120]


def _claim() -> None:
    """Be the one who tells, unless another process was first."""
    global _claimed
    try:
        store = dist.distributed_c10d._get_default_store()
        _claimed = store.add("metamae/told", 1) == 1
    except (RuntimeError, ValueError):  # the store is gone too, with process 0
        _claimed = True


def _device_of(device: str, local_rank: int) -> str:
    """The device of a process among those of its machine."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if device != "cuda":
        raise ConfigError(
            "expected --device auto, cpu or cuda under several processes, each of which takes a "
            f"CUDA device of its own, got {device!r}"
        )
    there = torch.cuda.device_count()
    if local_rank >= there:
        raise ConfigError(
            f"expected a CUDA device for every process of a machine, got {there} for process "
            f"{local_rank + 1} of it; lower --nproc-per-node, or use --device cpu"
        )
    return f"cuda:{local_rank}"
