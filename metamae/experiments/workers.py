"""Cells side by side: a process and a few threads each, and what each of them is doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from metamae.errors import ConfigError
from metamae.progress import Reporter, Stage
from metamae.training.allocator import keep_freed_memory
from metamae.training.devices import count_cores

Outcome = TypeVar("Outcome", covariant=True)

REFRESH = 0.5
"""Seconds between two looks at what the workers are doing."""


class Job(Protocol[Outcome]):
    """Work for one process."""

    @property
    def name(self) -> str:
        """What it is called in progress."""
        ...

    def run(self, reporter: Reporter) -> Outcome:
        """Do it."""
        ...


def choose_workers(workers: int | None, device: torch.device) -> int:
    """Cells at once: as many as there are cores; on an accelerator, which they would share, one.

    Raises:
        ConfigError: fewer than one.
    """
    if workers is None:
        return count_cores() if device.type == "cpu" else 1
    if workers < 1:
        raise ConfigError(f"expected at least 1 worker, got {workers}")
    return workers


@contextmanager
def limited_threads(threads: int, device: torch.device) -> Iterator[None]:
    """So many threads for torch on a CPU: sums, and so bits, depend on their number."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_side_by_side(
    jobs: Sequence[Job[Outcome]], workers: int, threads: int, stage: Stage
) -> Iterator[tuple[Job[Outcome], Outcome | Exception]]:
    """Run jobs in processes of their own, and yield what each came to, in the order of their end.

    A process that dies costs its job (and those that ran beside it), not the others.

    Args:
        jobs: What to do; they are sent to processes, and are started in this order.
        workers: Jobs at once.
        threads: Threads of each.
        stage: Shows what every running job is doing.
    """
    waiting = list(reversed(jobs))
    running: dict[Future[Outcome], Job[Outcome]] = {}
    doing: dict[str, str] = {}
    pool, messages = _pool(workers, threads)
    try:
        while waiting or running:
            lost = False
            while waiting and len(running) < workers:
                job = waiting[-1]
                try:
                    running[pool.submit(_run, job)] = job
                except BrokenProcessPool:  # a process died since the last look
                    lost = True
                    break
                waiting.pop()
                doing[job.name] = "starts"
            done, _ = wait(running, timeout=0 if lost else REFRESH, return_when=FIRST_COMPLETED)
            while not messages.empty():
                name, text = messages.get()
                doing[name] = text
            if lost or any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                wait(running)  # the pool is lost, and with it whatever it still ran
                pool.shutdown()
                done = set(running)
                pool, messages = _pool(workers, threads)
            for future in done:
                doing.pop(running[future].name, None)
                yield running.pop(future), _outcome(future)
            stage.show({job.name: doing.get(job.name, "") for job in running.values()})
    finally:
        stage.show({})
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def _outcome(future: Future[Any]) -> Any:
    fault = future.exception()
    return fault if isinstance(fault, Exception) else future.result()


def _pool(workers: int, threads: int) -> tuple[ProcessPoolExecutor, Any]:
    """Processes, and the queue of what they are doing: one that dies may hold its lock."""
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    # Read by the libraries of the new processes when they are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), threads, messages),
    )
    return pool, messages


_messages: Any = None


def _start_worker(parent: int, threads: int, messages: Any) -> None:
    """Ends with its parent, however that ends; Ctrl-C is the parent's to handle."""
    global _messages
    _messages = messages
    torch.set_num_threads(threads)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job[Outcome]) -> Outcome:
    return job.run(_Sending(job.name, _messages.put))


class _Sending(Reporter):
    """Tells the parent process, now and then, how far a job is."""

    def __init__(self, name: str, send: Callable[[tuple[str, str]], None]) -> None:
        super().__init__(None)
        self.name, self.send = name, send

    @contextmanager
    def stage(
        self, title: str, *, total: int, done: int = 0, unit: str = "steps"
    ) -> Iterator[Stage]:
        """A stage whose advances are sent."""
        yield _SendingStage(self, title.rpartition(": ")[2], total, done)


class _SendingStage:
    def __init__(self, reporter: _Sending, title: str, total: int, done: int) -> None:
        self.reporter, self.title, self.total, self.done = reporter, title, total, done
        self.sent = 0.0

    def advance(self, **values: float) -> None:
        self.done += 1
        self.note("")

    def note(self, text: str) -> None:
        now = time.monotonic()
        if now - self.sent >= REFRESH:
            self.sent = now
            shown = f"{self.title} {self.done}/{self.total} {text}".rstrip()
            self.reporter.send((self.reporter.name, shown))

    def show(self, parts: Mapping[str, str]) -> None:
        return
