"""Progress of long work: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

BETWEEN_LINES = 20.0
"""Seconds between two lines on what is done side by side, in a log."""


class Stage(Protocol):
    """One bar."""

    def advance(self, **values: float) -> None:
        """One unit done; ``values`` such as ``loss`` are shown beside the bar."""
        ...

    def note(self, text: str) -> None:
        """What is being done inside the current unit; only a bar shows it."""
        ...

    def show(self, parts: Mapping[str, str]) -> None:
        """What is done side by side, by name: a line each under a bar, or one now and then."""
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


class Nested(Reporter):
    """Shows stages as notes beside the bar of an outer stage, one bar being enough.

    Example:
        >>> from metamae.progress import Nested, Reporter
        >>> with Reporter(None).stage("sweep", total=1) as cells:
        ...     with Nested(cells).stage("training", total=2) as stage:
        ...         stage.advance()
        ...     cells.advance()
    """

    def __init__(self, outer: Stage) -> None:
        """See the class."""
        super().__init__(None)
        self.outer = outer

    @contextmanager
    def stage(
        self, title: str, *, total: int, done: int = 0, unit: str = "steps"
    ) -> Iterator[Stage]:
        """A stage whose advances become notes of the outer one."""
        yield _Note(self.outer, title, total, done)


class _Note:
    def __init__(self, outer: Stage, title: str, total: int, done: int) -> None:
        self.outer, self.title, self.total, self.done = outer, title, total, done

    def advance(self, **values: float) -> None:
        self.done += 1
        self.note(f"{self.done}/{self.total}")

    def note(self, text: str) -> None:
        self.outer.note(f"{self.title} {text}")

    def show(self, parts: Mapping[str, str]) -> None:
        self.outer.show(parts)


class _Silent:
    def advance(self, **values: float) -> None:
        return

    def note(self, text: str) -> None:
        return

    def show(self, parts: Mapping[str, str]) -> None:
        return


class _Bar:
    """A rich progress bar with the latest values, the rate and the time left."""

    def __init__(self, console: Console, title: str, total: int, done: int, unit: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.completed:>4}/{task.total}"),
            TextColumn("{task.fields[values]}", markup=False),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            # Cells of a sweep take minutes: an estimate from the last seconds would never come.
            speed_estimate_period=86_400,
        )
        self.meter = _Meter(unit)
        self.task = self.progress.add_task(title, total=total, completed=done, values="", rate="")
        self.parts: dict[str, TaskID] = {}

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, **values: float) -> None:
        self.meter.tick()
        self.progress.update(self.task, advance=1, values=_render(values), rate=self.meter.rate())

    def note(self, text: str) -> None:
        self.progress.update(self.task, values=text)

    def show(self, parts: Mapping[str, str]) -> None:
        for name in self.parts.keys() - parts.keys():
            self.progress.remove_task(self.parts.pop(name))
        for name, text in parts.items():
            if name not in self.parts:
                self.parts[name] = self.progress.add_task(
                    f"  {name}", total=None, values="", rate=""
                )
            self.progress.update(self.parts[name], values=text)


class _Lines:
    """A line at every quarter, for logs and pipes."""

    def __init__(self, console: Console, title: str, total: int, done: int, unit: str) -> None:
        self.console, self.title, self.total, self.done = console, title, total, done
        self.meter, self.shown = _Meter(unit), time.monotonic()

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

    def note(self, text: str) -> None:
        return

    def show(self, parts: Mapping[str, str]) -> None:
        now = time.monotonic()
        if not parts or now - self.shown < BETWEEN_LINES:
            return
        self.shown = now
        text = "; ".join(f"{name}: {part}" for name, part in parts.items())
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


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
