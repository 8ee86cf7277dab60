"""Signals that end work: Ctrl-C, SIGTERM and SIGHUP, held back until what is reached is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a program to end. SIGKILL cannot be held back by anybody."""


class Stopped(KeyboardInterrupt):
    """Work was ended by a signal.

    Like Ctrl-C it is no ``Exception``: what goes on after errors does not go on after it.

    Args:
        number: The signal.
        message: What was reached and where it is, or nothing.
        hint: How to go on; empty where the command knows better.

    Example:
        >>> from metamae.stopping import Stopped
        >>> Stopped(15).code
        143
    """

    def __init__(self, number: int, message: str = "", hint: str = "") -> None:
        """See the class."""
        super().__init__(message)
        self.number, self.message, self.hint = number, message, hint

    @property
    def code(self) -> int:
        """The exit code that a shell expects."""
        return 128 + self.number

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str, str]]:
        """From a worker's process to its parent."""
        return type(self), (self.number, self.message, self.hint)


def signal_of(stop: KeyboardInterrupt) -> int:
    """The signal behind an interrupt; a plain one is Ctrl-C."""
    return stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)


class Requests:
    """Signals that came while they were held back.

    Attributes:
        caught: The first of them, 0 for none.
    """

    def __init__(self) -> None:
        """See the class."""
        self.caught = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one does not wait any more."""
        if self.caught:
            raise Stopped(number)
        self.caught = number


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def held_back() -> Iterator[Requests]:
    """Hold signals back inside the block, for a loop that asks ``caught`` where it can stop.

    A second signal stops at once. Handlers that somebody else has set stay, and outside the main
    thread, where Python delivers no signals, nothing is held back.

    Example:
        >>> import os, signal
        >>> from metamae.stopping import held_back
        >>> with held_back() as requests:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     requests.caught == signal.SIGTERM
        True
    """
    requests = Requests()
    with _handling(requests.note, SIGNALS):
        yield requests


@contextmanager
def stoppable() -> Iterator[None]:
    """Let every signal end the block as Ctrl-C does: by an exception, so that all is tidied up."""
    with _handling(_raise, SIGNALS):
        yield


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...]
) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        ours = (signal.SIG_DFL, signal.default_int_handler, _raise)
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in ours}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
