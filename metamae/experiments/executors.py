"""Sweeps on machines of others: cells as tasks of a Dask cluster, which SLURM may start.

The scheduler decides which worker takes a cell, and gives the cells of a worker that died to
another one. Rows come back to the one process that writes them. Where workers see the output
folder, runs lie in it as ever, and a cell that is taken over goes on from its last checkpoint;
elsewhere a cell has a folder of its own while it is made, of which only the rows are kept.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from metamae.data.formats.libraries import need_module
from metamae.errors import ConfigError, reason_of
from metamae.experiments.workers import limited_threads
from metamae.progress import Reporter, Stage
from metamae.training.allocator import keep_freed_memory

Outcome = TypeVar("Outcome", covariant=True)

SECONDS = 30
"""How long to wait for a scheduler that does not answer."""


@dataclass(frozen=True)
class Executor:
    """Where the cells of a sweep are run.

    Attributes:
        kind: ``local``, ``dask`` or ``slurm``.
        address: Of a Dask scheduler.

    Example:
        >>> from metamae.experiments.executors import Executor
        >>> Executor.parse("dask:tcp://node1:8786")
        Executor(kind='dask', address='tcp://node1:8786')
    """

    kind: str = "local"
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Executor:
        """The executor that ``--executor`` names.

        Raises:
            ConfigError: another text.
        """
        kind, colon, address = text.partition(":")
        fits = bool(address) if kind == "dask" else not colon
        if kind not in ("local", "dask", "slurm") or not fits:
            raise ConfigError(
                f"expected an executor local, dask:ADDRESS (such as dask:tcp://node1:8786) or "
                f"slurm, got {text!r}"
            )
        return cls(kind, address)


LOCAL = Executor()
"""Processes of this machine."""


class RemoteJob(Protocol[Outcome]):
    """Work for another machine."""

    def moved(self, run_dir: Path) -> RemoteJob[Outcome]:
        """The same in another folder."""
        ...

    def run(self, reporter: Reporter) -> Outcome:
        """Do it."""
        ...


@contextmanager
def connected(executor: Executor, workers: int | None, threads: int) -> Iterator[Any]:
    """A ``distributed.Client`` of the cluster, which is started first where it is SLURM's.

    Args:
        executor: Which.
        workers: Jobs that SLURM is asked for; 1 where none is said.
        threads: Cores of each.

    Raises:
        ConfigError: nobody answers, or the cluster cannot be set up.
        MissingLibraryError: the extra ``cluster`` is not installed.
    """
    distributed = need_module("distributed", "cluster")
    if executor.kind == "slurm":
        with slurm_cluster(threads) as cluster:
            cluster.scale(jobs=workers or 1)
            with distributed.Client(cluster) as client:
                yield client
        return
    try:
        client = distributed.Client(executor.address, timeout=SECONDS)
    except (OSError, ValueError, TypeError) as fault:
        raise ConfigError(
            f"expected a Dask scheduler at {executor.address}, got none ({reason_of(fault)}); "
            "start one with: dask scheduler"
        ) from fault
    with client:
        _refuse_threads(client)
        yield client


def _refuse_threads(client: Any) -> None:
    """Seeds and threads are a process's own: a worker makes one cell at a time."""
    crowded = [name for name, threads in client.nthreads().items() if threads != 1]
    if crowded:
        raise ConfigError(
            f"expected workers that take one task at a time, got {len(crowded)} that take several "
            f"({crowded[0]}); start them with: dask worker --nthreads 1 ADDRESS"
        )


def slurm_cluster(threads: int, **settings: Any) -> Any:
    """A cluster whose workers are jobs of SLURM: one process each, with ``threads`` cores.

    Queue, account, memory and time are those of dask-jobqueue's own file,
    ``~/.config/dask/jobqueue.yaml``, section ``jobqueue.slurm``; ``settings`` go before them.

    Raises:
        ConfigError: the file does not say what SLURM has to be asked for.
        MissingLibraryError: the extra ``cluster`` is not installed.
    """
    jobqueue = need_module("dask_jobqueue", "cluster")  # which reads the file
    memory = settings.get("memory") or need_module("dask", "cluster").config.get(
        "jobqueue.slurm.memory", None
    )
    if not memory:
        raise ConfigError(
            "expected jobqueue.slurm.memory in ~/.config/dask/jobqueue.yaml, what SLURM is asked "
            "for, got none; write it there, with queue, account and walltime where they are needed"
        )
    asked = {"cores": 1, "processes": 1, "job_cpu": threads, **settings}
    return jobqueue.SLURMCluster(**asked, job_script_prologue=[f"export OMP_NUM_THREADS={threads}"])


def run_on_cluster(
    jobs: Sequence[RemoteJob[Outcome]], client: Any, out: Path, threads: int, stage: Stage
) -> Iterator[tuple[int, Outcome | Exception]]:
    """Run jobs as tasks of a cluster; yield what each, by number, came to, as they end.

    Args:
        jobs: What to do.
        client: The cluster.
        out: The output folder; workers that see it leave their runs there.
        threads: Threads of each job.
        stage: Shows how many are still to do.
    """
    token = uuid.uuid4().hex
    mark = out / f".shared-{token}"
    mark.touch()
    executor = client.get_executor(pure=False)
    running = {
        executor.submit(_take, job, mark, threads): number for number, job in enumerate(jobs)
    }
    try:
        for future in as_completed(list(running)):
            fault = future.exception()
            if fault is not None and not isinstance(fault, Exception):
                raise fault
            yield running.pop(future), (future.result() if fault is None else fault)
            stage.note(f"{len(running)} cells at or before the workers")
    finally:
        mark.unlink(missing_ok=True)
        for future in running:
            future.cancel()


_one_at_a_time = threading.Lock()


def _take(job: RemoteJob[Any], mark: Path, threads: int) -> Any:
    """In a worker: one job, in the shared folder or in one of its own."""
    keep_freed_memory()
    silent = Reporter(None)
    with _one_at_a_time, limited_threads(threads, torch.device("cpu")):
        if mark.exists():
            return job.run(silent)
        with tempfile.TemporaryDirectory(prefix="metamae-") as folder:
            return job.moved(Path(folder)).run(silent)
