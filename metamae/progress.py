"""Progress of long work: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Stage(Protocol):
    """One bar."""

    def advance(self, **values: float) -> None:
        """One unit done; ``values`` such as ``loss`` are shown beside the bar."""
        ...


class Reporter:
    """Shows stages on a console; ``Reporter(None)`` is silent.

    Example:
        >>> from metamae.progress import Reporter
        >>> with Reporter(None).stage("training", total=2) as stage:
        ...     stage.advance(loss=1.0)
    """

    def __init__(self, console: Console | None) -> None:
        """See the class."""
        self.console = console

    def say(self, text: str) -> None:
        """Print one line."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(
        self, title: str, *, total: int, done: int = 0, unit: str = "steps"
    ) -> Iterator[Stage]:
        """A bar over ``total`` units of which ``done`` were done before (after a resume)."""
        if self.console is None:
            yield _Silent()
        elif self.console.is_terminal:
            with _Bar(self.console, title, total, done, unit) as bar:
                yield bar
        else:
            yield _Lines(self.console, title, total, done, unit)


class _Silent:
    def advance(self, **values: float) -> None:
        return


class _Bar:
    """A rich progress bar with the latest values, the rate and the time left."""

    def __init__(self, console: Console, title: str, total: int, done: int, unit: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.completed:>4}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self.meter = _Meter(unit)
        self.task = self.progress.add_task(title, total=total, completed=done, values="", rate="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, **values: float) -> None:
        self.meter.tick()
        self.progress.update(self.task, advance=1, values=_render(values), rate=self.meter.rate())


class _Lines:
    """A line at every quarter, for logs and pipes."""

    def __init__(self, console: Console, title: str, total: int, done: int, unit: str) -> None:
        self.console, self.title, self.total, self.done = console, title, total, done
        self.meter = _Meter(unit)

    def advance(self, **values: float) -> None:
        self.meter.tick()
        self.done += 1
        if self.done * 4 // self.total == (self.done - 1) * 4 // self.total:
            return
        left = self.meter.seconds_each() * (self.total - self.done)
        self.console.print(
            f"{self.title:<28} {self.done:>6}/{self.total} {_render(values)} "
            f"{self.meter.rate()} {left:.0f} s left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


class _Meter:
    def __init__(self, unit: str) -> None:
        self.unit, self.start, self.count = unit, time.perf_counter(), 0

    def tick(self) -> None:
        self.count += 1

    def seconds_each(self) -> float:
        return (time.perf_counter() - self.start) / max(self.count, 1)

    def rate(self) -> str:
        return f"{1 / max(self.seconds_each(), 1e-9):.1f} {self.unit}/s"


def _render(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in values.items())
